"""Attention metadata of a batch, built once for all layers.

Owns its three forms: rectangles (PaddedMetadata), block tables on the host (PagedMetadata) and on a GPU
(TiledMetadata), and the sizes of a captured step. Not here: who builds and reads them (padded.py, paged_cpu.py,
triton_plan.py, static_tiles.py, triton_backend.py).
Shapes: per group B sequences x Q query rows x L KV indices; N draft tokens in S sequences.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from medusa_dist.ops.arrays import Bools, Ints


@dataclass(frozen=True)
class PaddedGroup:
    """Sequences of similar row count and length, padded to one rectangle.

    visible[b, q, l]: query q of sequence b may read KV index l, a position in the sequence's block table: known tokens
    at their position, draft tokens after them in tree order.
    Padding queries read KV index 0. They write to row T of an output one row longer than the batch, or, if the sequence
    is the only one in the batch, to its padding rows.
    """

    query_rows: Tensor  # [B, Q] int64 in 0..T, T = none of the batch's rows
    block_tables: Tensor  # [B * L / block size] int64, the block tables one after another
    visible: Tensor  # [B, Q, L] bool
    query_positions: Tensor  # [B, Q] int64
    key_positions: Tensor  # [B, L] int64; the position of a draft token follows from its depth, not from its KV index
    _bias: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    _pieces: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def pieces(self, num_planes: int, num_blocks: int) -> Tensor:
        """The blocks in each of num_planes planes (keys and values of every head) of num_blocks blocks, the planes one
        after another: [num_planes * B * L / block size] int64. Cached, since every layer needs it."""
        key = (num_planes, num_blocks)
        if key not in self._pieces:
            planes = torch.arange(num_planes, device=self.block_tables.device) * num_blocks
            self._pieces[key] = (planes[:, None] + self.block_tables).flatten()
        return self._pieces[key]

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [B, Q, L]: 0 where visible (and nearer than `window` positions), else -inf. Cached."""
        key = (window, dtype)
        if key not in self._bias:
            seen = self.visible
            if window is not None:
                distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
                seen = seen & (distance < window)
            zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._bias[key] = zeros.masked_fill_(~seen, float("-inf"))
        return self._bias[key]


@dataclass(frozen=True)
class PaddedMetadata:
    """in_order: the batch is one group, whose queries are the rows 0, 1, ... T - 1."""

    groups: tuple[PaddedGroup, ...]
    in_order: bool


class PagedMetadata(NamedTuple):
    """Metadata of a backend that reads block tables itself (paged_cpu.py): no rectangle, no padding.

    Host arrays. Sequence s has the rows from first_rows[s] on: num_new_tokens[s] known tokens at positions from
    num_computed_tokens[s] on, then num_draft_tokens[s] draft tokens, whose keys follow in tree order.
    """

    cost: int  # query-key pairs per query head
    work_items: Ints  # [I, 3] sequence, begin and end of the rows of one work item
    first_rows: Ints  # [S]
    num_computed_tokens: Ints  # [S]
    num_new_tokens: Ints  # [S]
    num_draft_tokens: Ints  # [S]
    block_tables: Ints  # [S, blocks]
    first_nodes: Ints  # [S] index of the sequence's first draft token among all
    depths: Ints  # [N]
    ancestors: Bools  # [N or 1, most draft tokens] a node is its own ancestor


class StepSizes(NamedTuple):
    """What fits into a captured step: rows, sequences, KV blocks of one of them. One may have nearly all rows as
    drafts."""

    rows: int
    sequences: int
    blocks: int


class Section(NamedTuple):
    """Shape and numpy dtype of an array that a captured step reads."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class TiledMetadata:
    """What the Triton kernels read (ops/gpu/attention_kernel.py), on the device: tiles of query-head pairs.

    A pair is a row of a sequence and one of the query heads that share a KV head; pair p is row p // (Hq / Hk). The
    context of a tile is cut into splits of fixed size. A tile is one item with all of its splits, or it is spread: one
    item per split, whose sums are kept in rows of a scratch tensor and added afterwards.
    The batch's padding rows are one more sequence, which has no keys.
    """

    sequences: Tensor  # [S + 1, 5] int32: first row, rows, computed tokens, known tokens, keys
    block_tables: Tensor  # [S + 1, blocks] int32
    words: Tensor  # [T, W] int64: bit b of word w is set if tree node 64 w + b is an ancestor of the row, or the row
    items: Tensor  # [I, 5] int32: sequence, first pair, first split, end of splits, scratch row or -1
    merges: Tensor  # [J, 5] int32, of spread tiles: sequence, first pair, splits, scratch row of the first, pairs
    num_scratch_rows: int
