"""Which tiles the Triton attention kernels compute: sizes per model, and the items of a batch.

Owns tile sizes and the cut of a batch into items, in numpy. Not here: the kernels (ops/gpu/attention_kernel.py), their
launch (triton_backend.py).
Tile sizes depend on the model and its dtype only, never on the batch, so that a row's result does not depend on it.
How tiles are dealt to programs does depend on the batch: it changes no bit.
"""

from collections import Counter
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


class _Tile(NamedTuple):
    sequence: int
    first: int  # pair
    pairs: int
    splits: int


def _items(sequences: _Words, shape: TileShape, per_head: int, most: SpreadLimits) -> tuple[_Words, _Words, int]:
    """items and merges of TiledMetadata, and the scratch rows that they need. Whole tiles come first: they take
    longest."""
    tiles = _tiles(sequences, shape, per_head)
    spread = _spread(tiles, most)
    whole: list[tuple[int, ...]] = []
    parts: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    scratch = 0
    for index, (sequence, first, pairs, splits) in enumerate(tiles):
        if index not in spread:
            whole.append((sequence, first, 0, splits, -1))
            continue
        merges.append((sequence, first, splits, scratch, pairs))
        parts += [(sequence, first, split, split + 1, scratch + split * pairs) for split in range(splits)]
        scratch += splits * pairs
    items, found = (np.array(rows, dtype=np.int32).reshape(-1, 5) for rows in (whole + parts, merges))
    return items, found, scratch


def _tiles(sequences: _Words, shape: TileShape, per_head: int) -> list[_Tile]:
    """Tiles of all sequences, in order, and how many splits of the context each reads."""
    tiles: list[_Tile] = []
    for sequence, (_, num_rows, computed, known, length) in enumerate(sequences.tolist()):
        end = num_rows * per_head
        for first in range(0, end, shape.pairs):
            pairs = min(shape.pairs, end - first)
            last_row = (first + pairs - 1) // per_head
            is_chain = last_row < known - computed and length > 0  # padding rows have no keys
            num_keys = computed + last_row + 1 if is_chain else length
            tiles.append(_Tile(sequence, first, pairs, -(-num_keys // shape.split)))
    return tiles


def _spread(tiles: list[_Tile], most: SpreadLimits) -> set[int]:
    """Indices of the tiles to spread: of sequences with few tiles, the longest first, as far as the limits allow."""
    num_tiles = Counter(tile.sequence for tile in tiles)
    may = [i for i, tile in enumerate(tiles) if tile.splits > 1 and num_tiles[tile.sequence] <= _SPREAD_TILES]
    spread: set[int] = set()
    rows = splits = 0
    for index in sorted(may, key=lambda i: -tiles[i].splits):
        rows += tiles[index].splits * tiles[index].pairs
        splits += tiles[index].splits
        if rows > most.scratch_rows or splits > most.splits:
            break
        spread.add(index)
    return spread


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
