"""Which tiles the Triton attention kernels compute: sizes per model, and the items of a batch.

Owns tile sizes and the cut of a batch into items, in numpy. Not here: the kernels (ops/gpu/attention_kernel.py), their
launch (triton_backend.py).
Tile sizes depend on the model and its dtype only, never on the batch, so that a row's result does not depend on it.
How tiles are dealt to programs does depend on the batch: it changes no bit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array, Ints
from medusa_dist.ops.attention.backend import BatchLayout
from medusa_dist.ops.attention.metadata import TiledMetadata
from medusa_dist.ops.gpu.language import padded

_SPLIT = 256  # keys: 2,048 keys of 8 KV heads are 64 programs, and sums that wait are an eighth of what was read
_SPREAD_TILES = 4  # tiles of more rows keep a GPU busy without being spread, and their sums would fill the memory
_SCRATCH_ROWS = 32768  # of sums that wait to be added: 17 MB per KV head of 128 elements
_ALIGNMENT = 16  # bytes; Triton compiles a kernel anew for pointers that are not aligned to it

_Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TileShape:
    """Sizes of the kernels for one model. pairs: query-head pairs of a tile; keys: read at once, at most 32 (ancestors
    are tested in one 32-bit word); split: keys of a split, a multiple of `keys`."""

    pairs: int
    keys: int
    split: int
    num_warps: int
    num_stages: int


def tile_shape(head_dim: int, dtype: torch.dtype) -> TileShape:
    """The shape for heads of this size: the largest whose kernels fit into registers on sm_80, sm_90 and sm_100.

    64 pairs use tensor cores well, and a lone row loses nothing: reading keys takes longer than multiplying them. In
    float32 there are no exact tensor cores, so a lone row would pay for 64.
    """
    width = padded(head_dim)
    num_warps = 4 if width <= 64 else 8
    if dtype == torch.float32:
        return TileShape(16, 32 if width <= 128 else 16, _SPLIT, num_warps, num_stages=3 if width <= 128 else 2)
    return TileShape(64 if width <= 128 else 32, 32, _SPLIT, num_warps, num_stages=3)


class TiledBatch:
    """A batch for layers of any head shape. Those of the model share one plan; a layer of the heads' own, which follows
    the rows of the pass, may need another."""

    def __init__(self, layout: BatchLayout, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._tiles: dict[tuple[TileShape, int], TiledMetadata] = {}

    def tiles(self, shape: TileShape, per_head: int) -> TiledMetadata:
        """The tiles for layers in which per_head query heads share a KV head; planned and uploaded once."""
        key = (shape, per_head)
        if key not in self._tiles:
            self._tiles[key] = plan_tiles(self._layout, shape, per_head, self._device)
        return self._tiles[key]


class SpreadLimits(NamedTuple):
    """How much may be spread: rows of sums that wait, and splits."""

    scratch_rows: int
    splits: int = 1 << 30


def plan_tiles(layout: BatchLayout, shape: TileShape, per_head: int, device: torch.device) -> TiledMetadata:
    """The batch for the kernels; one upload. per_head: query heads that share a KV head."""
    arrays, num_scratch_rows = tile_arrays(layout, shape, per_head, SpreadLimits(_SCRATCH_ROWS))
    uploaded = dict(zip(arrays, _upload(list(arrays.values()), device), strict=True))
    return TiledMetadata(**uploaded, num_scratch_rows=num_scratch_rows)


def tile_arrays(
    layout: BatchLayout, shape: TileShape, per_head: int, most: SpreadLimits
) -> tuple[dict[str, Array], int]:
    """The arrays of TiledMetadata on the host, by name, and the scratch rows that they need."""
    sequences = _sequences(layout)
    items, merges, num_scratch_rows = _items(sequences, shape, per_head, most)
    tables = np.zeros((len(sequences), layout.used_blocks), dtype=np.int32)
    tables[:-1] = layout.block_tables[:, : layout.used_blocks]
    found: dict[str, Array] = {"words": _ancestor_words(layout), "sequences": sequences, "block_tables": tables}
    return {**found, "items": items, "merges": merges}, num_scratch_rows


def _sequences(layout: BatchLayout) -> _Words:
    rows, ends = layout.rows, np.cumsum(layout.rows)
    known = layout.num_computed_tokens + layout.num_new_tokens
    facts = np.stack([ends - rows, rows, layout.num_computed_tokens, known, layout.lengths], axis=1)
    padding = np.array([[int(ends[-1]), layout.num_rows - int(ends[-1]), 0, 0, 0]])
    return np.concatenate([facts, padding]).astype(np.int32)


def _ancestor_words(layout: BatchLayout) -> Ints:
    """[T, W]; rows of known tokens have none."""
    num_words = max(1, -(-int(layout.num_draft_tokens.max()) // 64))
    words = np.zeros((layout.num_rows, num_words), dtype="<i8")
    ends = np.cumsum(layout.rows)
    for s in np.flatnonzero(layout.num_draft_tokens):
        words[ends[s] - layout.num_draft_tokens[s] : ends[s]] = layout.trees[s].words(num_words)
    return words


def _items(sequences: _Words, shape: TileShape, per_head: int, most: SpreadLimits) -> tuple[_Words, _Words, int]:
    """items and merges of TiledMetadata, and the scratch rows that they need."""
    _, num_rows, computed, known, length = sequences.astype(np.int64).T
    num_tiles = -(-num_rows * per_head // shape.pairs)
    sequence = np.repeat(np.arange(num_rows.size), num_tiles)
    first = (np.arange(sequence.size) - (np.cumsum(num_tiles) - num_tiles)[sequence]) * shape.pairs
    pairs = np.minimum(shape.pairs, num_rows[sequence] * per_head - first)
    last_row = (first + pairs - 1) // per_head
    is_chain = last_row < (known - computed)[sequence]
    num_keys = np.where(is_chain, computed[sequence] + last_row + 1, length[sequence])
    num_keys = np.where(length[sequence] == 0, 0, num_keys)  # padding rows
    splits = -(-num_keys // shape.split)
    may_spread = (num_tiles[sequence] <= _SPREAD_TILES) & (splits > 1)
    if not may_spread.any():
        zeros = np.zeros(sequence.size, dtype=np.int64)
        items = np.stack([sequence, first, zeros, splits, zeros - 1], axis=1)
        return items.astype(np.int32), np.zeros((0, 5), dtype=np.int32), 0
    # The longest tiles first, as far as the scratch rows go.
    order = np.argsort(-splits, kind="stable")
    order = order[may_spread[order]]
    spread = np.zeros(sequence.size, dtype=np.bool_)
    fits = np.cumsum((splits * pairs)[order]) <= most.scratch_rows
    spread[order[fits & (np.cumsum(splits[order]) <= most.splits)]] = True
    whole = ~spread
    begin = np.cumsum((splits * pairs)[spread]) - (splits * pairs)[spread]
    tile = np.repeat(np.arange(int(spread.sum())), splits[spread])
    split = np.arange(tile.size) - (np.cumsum(splits[spread]) - splits[spread])[tile]
    scratch = begin[tile] + split * pairs[spread][tile]
    # Whole tiles start first: they take longest.
    zeros = np.zeros(int(whole.sum()), dtype=np.int64)
    alone = np.stack([sequence[whole], first[whole], zeros, splits[whole], zeros - 1], axis=1)
    parts = np.stack([sequence[spread][tile], first[spread][tile], split, split + 1, scratch], axis=1)
    merges = np.stack([sequence[spread], first[spread], splits[spread], begin, pairs[spread]], axis=1)
    items = np.concatenate([alone, parts]).astype(np.int32)
    return items, merges.astype(np.int32), int((splits * pairs)[spread].sum())


def _upload(arrays: list[Array], device: torch.device) -> list[Tensor]:
    """The arrays on the device, as parts of one tensor, in one copy."""
    ends = np.cumsum([-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays])
    host = torch.zeros(int(ends[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    begins = [0, *ends[:-1].tolist()]
    for begin, array in zip(begins, arrays, strict=True):
        host.numpy()[begin : begin + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[begin : begin + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for begin, array in zip(begins, arrays, strict=True)
    ]
