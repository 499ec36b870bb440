"""What attention backends read of a pass, made once for all its layers.

Owns the two images of a batch: rectangles (PaddedMetadata) and block tables (PagedMetadata). Not here: who makes and
reads them (padded.py, paged_cpu.py).
Shapes: per group B sequences x Q query rows x L keys; N drafted nodes in S sequences.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from medusa_dist.ops.arrays import Bools, Ints


@dataclass(frozen=True)
class PaddedGroup:
    """Sequences of similar row count and length, padded to one rectangle.

    visible[b, q, l]: query q of sequence b may read key column l. A column is a place in the sequence's block table:
    committed tokens stand at their position, drafted nodes behind them in tree order.
    Padding queries read column 0. They write to row T of an output one row longer than the pass, or, for a sequence
    that is alone in the pass, to its padding rows.
    """

    query_rows: Tensor  # [B, Q] int64 in 0..T, T = none of the pass's
    block_tables: Tensor  # [B * L / block size] int64, the block tables one after another
    visible: Tensor  # [B, Q, L] bool
    query_positions: Tensor  # [B, Q] int64
    key_positions: Tensor  # [B, L] int64: a drafted node's position is its depth's, not its column
    _bias: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    _pieces: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def pieces(self, num_planes: int, num_blocks: int) -> Tensor:
        """The blocks in each of num_planes planes (keys and values of every head) of num_blocks blocks, the planes one
        after another: [num_planes * B * L / block size] int64. Cached, since every layer asks."""
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
    """in_order: the pass is one group, whose queries are the rows 0, 1, ... T - 1."""

    groups: tuple[PaddedGroup, ...]
    in_order: bool


class PagedMetadata(NamedTuple):
    """The same for an attention that reads block tables itself (ops/attention/paged_cpu.py): no rectangle, no padding.

    Arrays on the host. Sequence s has the rows of the pass from first_rows[s] on: num_new_tokens[s] known tokens at the
    positions from num_computed_tokens[s] on, then num_draft_tokens[s] drafted ones, whose keys follow in tree order.
    """

    cost: int  # query-key pairs per query head
    work_items: Ints  # [I, 3] sequence, first and end of some of its rows: one piece of work
    first_rows: Ints  # [S]
    num_computed_tokens: Ints  # [S]
    num_new_tokens: Ints  # [S]
    num_draft_tokens: Ints  # [S]
    block_tables: Ints  # [S, blocks]
    first_nodes: Ints  # [S] index of a sequence's first node among all
    depths: Ints  # [N]
    ancestors: Bools  # [N or 1, most nodes] a node is its own ancestor
