"""What the KV cache should hold: each sequence's rows against those of a fresh pass over its tokens."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.state.block_pool import chain_hash
from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from tests.support.tiny_models import dense_attend

TOLERANCE = 1e-5


def fresh_rows(worker: Worker, tokens: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [T, Hkv, D] of each layer, from a pass with the plainest attention."""
    seen: list[tuple[Tensor, Tensor]] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        seen.append((params.rotated(q, k)[1], v))
        return dense_attend(layer, q, k, v, params)

    with torch.inference_mode(), attention_context.using(attend):
        worker.model.forward(torch.tensor(tokens), torch.arange(len(tokens)), torch.tensor([0]))
    return seen


def check_rows(
    worker: Worker, slots: Sequence[int], fresh: list[tuple[Tensor, Tensor]], first: int, whose: str
) -> None:
    """The pool's rows at `slots` are those of the columns from `first` on."""
    for layer, both in enumerate(fresh):
        found = worker.pool.read(layer, torch.tensor(list(slots)))
        for part, (got, expected) in enumerate(zip(found, both, strict=True)):
            wanted = expected[first : first + len(slots)]
            assert torch.allclose(got, wanted, atol=TOLERANCE, rtol=TOLERANCE), f"{whose}: layer {layer}, part {part}"


def check_sequences(engine: Engine) -> None:
    """KV of every running sequence, accepted moves taken into account."""
    worker = engine.ranks.worker
    for sequence in engine.scheduler.running:
        count = sequence.num_computed_tokens
        if count:
            moved = {target: source for source, target in sequence.pending_copies}
            slots = [sequence.slot_at(moved.get(column, column)) for column in range(count)]
            fresh = fresh_rows(worker, sequence.tokens[:count])
            check_rows(worker, slots, fresh, 0, sequence.request.request_id)


def check_cached_blocks(engine: Engine, texts: Iterable[tuple[int, ...]]) -> None:
    """Every block that the prefix cache knows holds what its name says. texts: all that was ever computed."""
    known = dict(engine.scheduler.pool._known)
    for text in texts:
        name, blocks = b"", []
        for first in range(0, len(text) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            name = chain_hash(name, text[first : first + BLOCK_TOKENS])
            if name in known:
                blocks.append((first, known.pop(name)))
        if blocks:
            fresh = fresh_rows(engine.ranks.worker, text)
            for first, block in blocks:
                slots = range(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
                check_rows(engine.ranks.worker, slots, fresh, first, f"block {block}")
    assert not known, "a block is known by the name of a text that nobody computed"
