"""Drafting with EAGLE-3 heads: level by level, the best paths by joint confidence are extended.

Owns the passes of the layer, over keys and values that are given. Pure. Not here: the layer (layer.py), which guesses
are extended (medusa/trees/levels.py), where the context is kept (engine/drafters/context_cache.py).
Shapes: B sequences, M paths of each at a level, L keys of the context, R guesses per list, K levels, D known tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.medusa.eagle3.layer import Eagle3
from medusa_dist.medusa.trees.levels import Growth, Levels, Lists


@dataclass
class Context:
    """What the layer sees of the tokens before the roots.

    keys, values: [B, kv heads, L + room, d]; the last `room` columns are free and are written while drafting.
    positions: [B, L] of the keys. seen: [B, L] bool, which of them exist.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    seen: Tensor


def room_for(growth: Growth) -> int:
    """Columns that drafting writes: the root and all guesses that are extended."""
    return 1 + sum(growth.counts)


def draft_levels(
    heads: Eagle3,
    start: tuple[Tensor, Tensor, Tensor],
    embed: Callable[[Tensor], Tensor],
    context: Context,
    chance: tuple[Tensor, Tensor | None],
    growth: Growth,
) -> Lists:
    """Draft after the roots.

    start: embeddings of the roots [B, H], fused states of the tokens before them [B, H], positions of the roots [B].
    embed: columns of the draft vocabulary [N] -> embeddings [N, H]. chance: as for guess(), temperatures [B], and noise
    [B, K, D] or None.
    """
    embeddings, states, positions = start
    size, length = context.seen.shape
    levels = Levels(growth, heads.num_levels, chance)
    visible = torch.zeros(size, 1, context.keys.shape[2] - length, dtype=torch.bool, device=states.device)
    depth, used = 0, 0
    while True:
        width = visible.shape[1]
        visible = visible.clone()
        rows = torch.arange(width, device=states.device)
        visible[:, rows, used + rows] = True  # each row sees itself
        states, logits = _level(heads, (embeddings, states, positions + depth), context, visible, used)
        extended = levels.add(logits)
        if extended is None:
            return levels.lists()
        depth, used = depth + 1, used + width
        visible = visible.gather(1, extended.parents[:, :, None].expand(-1, -1, visible.shape[2]))
        states = states[extended.rows(width)]
        embeddings = embed(extended.columns.flatten())


def _level(
    heads: Eagle3, rows: tuple[Tensor, Tensor, Tensor], context: Context, visible: Tensor, used: int
) -> tuple[Tensor, Tensor]:
    """One pass over B * M rows: writes their keys and values after `used` drafted ones, attends, and finishes.

    rows: embeddings and states [B * M, H], positions [B]. visible: [B, M, room], which drafted rows each row sees.
    """
    embeddings, states, positions = rows
    size, width, _ = visible.shape
    length = context.seen.shape[1]
    pairs, residual = heads.read(embeddings, states)
    each = positions.repeat_interleave(width)
    keys, values = heads.keys_values(pairs, each)
    queries = heads.queries(pairs, each)
    here = slice(length + used, length + used + width)
    for cache, new in ((context.keys, keys), (context.values, values)):
        cache[:, :, here] = new.view(size, width, *new.shape[1:]).transpose(1, 2).to(cache.dtype)
    seen = context.seen
    if heads.config.window is not None:
        seen = seen & (context.positions > positions[:, None] - heads.config.window)
    end = length + used + width
    mask = torch.cat([seen[:, None].expand(-1, width, -1), visible], dim=2)[:, None, :, :end]
    attended = F.scaled_dot_product_attention(
        queries.view(size, width, *queries.shape[1:]).transpose(1, 2),
        context.keys[:, :, :end].to(queries.dtype),
        context.values[:, :, :end].to(queries.dtype),
        attn_mask=mask,
        enable_gqa=True,
    )
    return heads.finish(attended.transpose(1, 2).reshape(size * width, -1), residual)
