"""StaticTiles: tiles of a batch in arrays of fixed shapes, for a step that is captured once and replayed with new data.

Owns the shapes and what stands in unused places. Not here: how a batch is cut (triton_plan.py), who captures
(engine/runner/graphed_steps.py).
An unused item has no rows, an unused merge no pairs: their programs store nothing.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.attention.backend import BatchLayout
from medusa_dist.ops.attention.metadata import Section, StepSizes, TiledMetadata
from medusa_dist.ops.attention.triton_plan import SpreadLimits, TileShape, tile_arrays, tile_shape

_MORE_ITEMS = 512  # splits of spread tiles: with 8 KV heads, 4,096 programs, some 30 for each processor of an H100
_BEYOND = 1 << 30  # a pair that no sequence has


class FixedTiles:
    """In the place of TiledBatch, for layers of the model's own head shape."""

    def __init__(self, key: tuple[TileShape, int], found: TiledMetadata) -> None:
        self._key, self._found = key, found

    def tiles(self, shape: TileShape, per_head: int) -> TiledMetadata:
        """The tiles."""
        assert (shape, per_head) == self._key, "a layer of another head shape cannot be captured"
        return self._found


class StaticTiles:
    """The static form of one model's tiles. per_head: query heads that share a KV head."""

    def __init__(self, shape: TileShape, per_head: int) -> None:
        self._shape, self._per_head = shape, per_head

    def fits(self, head_dim: int, per_head: int, dtype: torch.dtype) -> bool:
        """Whether another layer's heads have the same tiles."""
        return (tile_shape(head_dim, dtype), per_head) == (self._shape, self._per_head)

    def sections(self, sizes: StepSizes) -> dict[str, Section]:
        """Name -> form of the arrays that a batch is written to."""
        num_tiles = sizes.rows * -(-self._per_head // self._shape.pairs)
        return {
            "words": Section((sizes.rows, -(-sizes.rows // 64)), "<i8"),
            "sequences": Section((sizes.sequences + 1, 5), "<i4"),
            "block_tables": Section((sizes.sequences + 1, sizes.blocks), "<i4"),
            "items": Section((num_tiles + _MORE_ITEMS, 5), "<i4"),
            "merges": Section((num_tiles, 5), "<i4"),
        }

    def fill(self, layout: BatchLayout, arrays: Mapping[str, Array]) -> None:
        """Write a batch that fits; every element is written."""
        most = SpreadLimits(self._num_scratch_rows, _MORE_ITEMS)
        made, _ = tile_arrays(layout, self._shape, self._per_head, most)
        unused = {
            **{"words": 0, "sequences": 0, "block_tables": 0},
            "items": np.array([0, _BEYOND, 0, 0, -1]),
            "merges": 0,
        }
        for name, array in made.items():
            target = arrays[name]
            target[...] = unused[name]
            target[tuple(slice(size) for size in array.shape)] = array

    def metadata(self, tensors: Mapping[str, Tensor]) -> FixedTiles:
        """What the kernels read, in tensors of the sections' forms on the device."""
        names = ("sequences", "block_tables", "words", "items", "merges")
        found = TiledMetadata(**{name: tensors[name] for name in names}, num_scratch_rows=self._num_scratch_rows)
        return FixedTiles((self._shape, self._per_head), found)

    @property
    def _num_scratch_rows(self) -> int:
        return _MORE_ITEMS * self._shape.pairs
