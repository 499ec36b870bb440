"""Padded attention of a batch over the paged KV cache, including trees.

Owns the backends in tensor operations, and the rectangles and masks that they read. Not here: the interface
(backend.py), the compiled CPU backend (paged_cpu.py), the choice of a backend (registry.py).
`exact`: products and a softmax whose rows do not depend on other rows. `sdpa`: torch's scaled_dot_product_attention,
faster on GPUs. Each is the other's oracle in the tests, and both are oracles of `paged_cpu`, the compiled one.

Why `exact` is exact on CPU in float32: a query's result is bitwise the same whatever else is in the batch, because
 - a batched product with enough rows (min_queries) computes each output element as one chain of fused multiply-adds
   over the keys, so a key of weight 0 (a sibling in the tree, padding) changes nothing, wherever it is;
 - the chain is cut every KEY_CHUNK KV indices at fixed positions, where the library would choose its own cuts by length
   (seen: beyond 256 keys on Intel CPUs, beyond 192 on AMD CPUs); the scheduler keeps a tree's KV indices inside one
   chunk, so a drafted key is summed in the chunk of its position;
 - there are at least two products, each computed by one thread;
 - the normaliser is the same product with a matrix of ones, where a vectorised sum depends on the position of each key.
tests/unit/ops/attention/test_padded.py checks this on the machine it runs on.
Shapes: T rows, Hq query heads, Hk kv heads, G = Hq / Hk, D head_dim; a group is B x Q queries over L KV indices.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import AttentionParams, BatchLayout, StaticForm
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.metadata import PaddedGroup, PaddedMetadata
from medusa_dist.ops.forward_batch import ForwardBatch

KEY_CHUNK = 192
_ONES_COLUMNS = 8
_ones_of: dict[torch.device, Tensor] = {}  # the largest needed so far


def min_queries(head_dim: int, per_head: int) -> int:
    """Fewest queries per sequence in a product, including padding; per_head query heads share a kv head.

    A product with few rows uses another kernel and rounds differently. Seen with MKL: from 3 rows at head_dim 64, 6 at
    128 and 10 at 256 on, all row counts agree; this requires a few more.
    """
    rows = max(4, -(-head_dim // 16))
    return -(-rows // per_head)


GroupAttention = Callable[[Tensor, Tensor, Tensor, PaddedGroup, AttentionParams], Tensor]


class PaddedBackend:
    """Gathers keys and values of similar sequences into rectangles, and attends with tensor operations.

    attend: attention of one rectangle. queries_per_head: query heads that share a KV head.
    """

    keys_in_columns = False

    def __init__(
        self, attend: GroupAttention, head_dim: int, queries_per_head: int, tree_alignment: int | None
    ) -> None:
        self.tree_alignment = tree_alignment
        self.static_form: StaticForm | None = None
        self._attend = attend
        self._min_queries = min_queries(head_dim, queries_per_head)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Nothing is compiled."""

    def metadata(self, layout: BatchLayout, device: torch.device) -> PaddedMetadata:
        """Sequences grouped by similar row count and length, each group padded to one rectangle."""
        groups = tuple(
            _group(layout, members, self._min_queries, device)
            for members in _similar(layout.rows, layout.lengths, self._min_queries)
        )
        is_padded = int(layout.rows.sum()) < layout.num_rows
        fills = len(groups) == 1 and groups[0].query_rows.numel() == layout.num_rows
        return PaddedMetadata(groups, in_order=fills and (not is_padded or layout.rows.size == 1))

    def __call__(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        params: AttentionParams,
        cache: KVCache,
        batch: ForwardBatch,
    ) -> Tensor:
        """queries [T, Hq, D], keys and values [T, Hk, D] -> [T, Hq, D]."""
        queries, keys = params.rotated(queries, keys)
        cache.write(layer, batch.slot_mapping, keys, values)
        metadata: PaddedMetadata = batch.attention
        num_rows, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[1]

        def attend(rows: Tensor, group: PaddedGroup) -> Tensor:
            """[B * Q, Hq, D] -> the same. The query heads of one kv head are rows of one product: [Hk, B, Q, G, D]."""
            size, width = group.query_rows.shape
            q = rows.view(size, width, num_kv_heads, -1, head_dim).permute(2, 0, 1, 3, 4)
            k, v = _gather(cache, layer, group, size)
            return self._attend(q, k, v, group, params).permute(1, 2, 0, 3, 4).reshape(rows.shape)

        if metadata.in_order:
            return attend(queries, metadata.groups[0])
        padded = torch.cat([queries, queries.new_zeros(1, num_heads, head_dim)])
        # Zeros, not empty: padding rows are in no group, and garbage in them would reach the scratch block.
        out = torch.zeros_like(padded)
        for group in metadata.groups:
            rows = group.query_rows.flatten()
            out.index_copy_(0, rows, attend(padded.index_select(0, rows), group))
        return out[:num_rows]


def _gather(cache: KVCache, layer: int, group: PaddedGroup, size: int) -> Tensor:
    """Keys and values of a group: [2, Hk, B, L, D]."""
    assert not cache.keys_in_columns
    rows = cache.rows[layer]
    _, num_kv_heads, _, head_dim = rows.shape
    # As rows of one matrix, a CPU copies whole blocks; along an inner dimension it took up to 3 times as long.
    pieces = group.pieces(2 * num_kv_heads, cache.num_blocks)
    blocks = rows.view(-1, BLOCK_TOKENS * head_dim).index_select(0, pieces)
    return blocks.view(2, num_kv_heads, size, -1, head_dim)


def _similar(rows: Ints, lengths: Ints, min_queries: int) -> list[Ints]:
    """Group sequences to waste little padding: equal row counts and lengths after rounding up to a power of two."""
    row_class = np.ceil(np.log2(np.maximum(rows, min_queries))).astype(np.int64)
    length_class = np.ceil(np.log2(np.maximum(lengths, KEY_CHUNK))).astype(np.int64)
    key = row_class * 64 + length_class
    return [np.flatnonzero(key == value) for value in np.unique(key)]


def _group(layout: BatchLayout, members: Ints, min_queries: int, device: torch.device) -> PaddedGroup:
    starts, chains = layout.num_computed_tokens[members], layout.num_new_tokens[members]
    nodes, num_rows = layout.num_draft_tokens[members], layout.num_rows
    rows = chains + nodes
    offsets = np.cumsum(layout.rows)[members] - rows
    is_lone = layout.rows.size == 1  # its padding rows may be queries too, so that the batch is in order
    width = max(int(rows.max()), min_queries, num_rows if is_lone else 0)
    num_blocks = -(-int((starts + rows).max()) // BLOCK_TOKENS)
    query = np.arange(width)
    column = np.arange(num_blocks * BLOCK_TOKENS)
    real = query < rows[:, None]
    # A known token sees all KV indices up to its own; a node sees those up to the root's, plus its ancestors (below).
    limits = np.where(real, starts[:, None] + np.minimum(query, chains[:, None] - 1) + 1, 1)
    visible = column < limits[:, :, None]
    query_positions = np.where(real, starts[:, None] + query, 0)
    key_positions = np.broadcast_to(column, (members.size, column.size)).copy()
    for b in np.flatnonzero(nodes):
        tree, known = layout.trees[members[b]], int(starts[b] + chains[b])
        own = slice(int(chains[b]), int(rows[b]))
        drafted = slice(known, known + int(nodes[b]))
        visible[b, own, drafted] = tree.matrix
        query_positions[b, own] = key_positions[b, drafted] = known - 1 + tree.depths
    spare = np.minimum(query, num_rows) if is_lone else num_rows
    return PaddedGroup(
        query_rows=torch.from_numpy(np.where(real, offsets[:, None] + query, spare)).to(device),
        block_tables=torch.from_numpy(layout.block_tables[members, :num_blocks].reshape(-1)).to(device),
        visible=torch.from_numpy(visible).to(device),
        query_positions=torch.from_numpy(query_positions).to(device),
        key_positions=torch.from_numpy(key_positions).to(device),
    )


def attend_exact(q: Tensor, k: Tensor, v: Tensor, group: PaddedGroup, scoring: AttentionParams) -> Tensor:
    """q [Hk, B, Q, G, D], k and v [Hk, B, L, D] -> [Hk, B, Q, G, D]; the module docstring explains what is exact."""
    num_kv_heads, size, width, per_head, head_dim = q.shape
    length = k.shape[2]
    batch, rows = num_kv_heads * size, width * per_head
    flat, keys = q.reshape(batch, rows, head_dim), k.reshape(batch, length, head_dim).transpose(1, 2)
    # In float32 whatever the model's dtype: batched bfloat16 products are several times slower on a CPU.
    scores = _products(flat.float() * scoring.scale, keys.float())
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    shaped = scores.view(num_kv_heads, size, width, per_head, length)
    shaped += group.bias(scoring.window, scores.dtype)[None, :, :, None, :]
    highest = shaped.amax(dim=-1, keepdim=True)
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(num_kv_heads, 1, 1, per_head, 1)
        highest = torch.maximum(highest, sinks)
    weights = shaped.sub_(highest).exp_().view(batch, rows, length)
    values = v.reshape(batch, length, head_dim).float()
    ones = _ones(batch, values.device)
    total: Tensor | None = None
    norm: Tensor | None = None
    for start in range(0, length, KEY_CHUNK):
        part = weights[:, :, start : start + KEY_CHUNK]
        part_total = _products(part, values[:, start : start + KEY_CHUNK])
        part_norm = _products(part, ones[:, : part.shape[2]])[:, :, :1]
        total = part_total if total is None else total + part_total
        norm = part_norm if norm is None else norm + part_norm
    assert total is not None and norm is not None
    norm = norm.view(num_kv_heads, size, width, per_head, 1)
    if scoring.sinks is not None:
        norm = norm + (sinks - highest).exp()
    return (total.view(q.shape) / norm).to(q.dtype)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """torch.bmm, but never with a single product: threads would split its rows, and few rows use another kernel."""
    return torch.bmm(a, b) if a.shape[0] > 1 else torch.bmm(torch.cat([a, a]), torch.cat([b, b]))[:1]


def _ones(batch: int, device: torch.device) -> Tensor:
    """[batch, KEY_CHUNK, _ONES_COLUMNS] of float32 ones, materialised: a product would copy an expanded tensor."""
    known = _ones_of.get(device)
    if known is None or known.shape[0] < batch:
        known = _ones_of[device] = torch.ones(batch, KEY_CHUNK, _ONES_COLUMNS, device=device)
    return known[:batch]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, group: PaddedGroup, scoring: AttentionParams) -> Tensor:
    """The same through torch's fused attention. It supports neither softcap nor sinks; those use the exact path."""
    if scoring.softcap is not None or scoring.sinks is not None:
        return attend_exact(q, k, v, group, scoring)
    num_kv_heads, size, width, per_head, head_dim = q.shape
    # [B, Hk, G * Q, D]: queries of one kv head read the same keys, so grouped heads need no copy of them.
    queries = q.permute(1, 0, 3, 2, 4).reshape(size, num_kv_heads, per_head * width, head_dim)
    bias = group.bias(scoring.window, q.dtype)[:, None].repeat(1, 1, per_head, 1)
    out = F.scaled_dot_product_attention(
        queries, k.transpose(0, 1), v.transpose(0, 1), attn_mask=bias, scale=scoring.scale
    )
    return out.view(size, num_kv_heads, per_head, width, head_dim).permute(1, 0, 3, 2, 4)
