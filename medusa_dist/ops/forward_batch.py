"""The tensor image of one Plan: what the forward pass and attention read.

Owns the shapes; made by one function (engine/runner/batch_builder.py) from a Plan and the rank's block tables.
Shapes: T rows of the pass (prompt tokens, roots, drafted nodes, padding), W rows whose scores are wanted, and per
attention group B sequences x Q query rows x L key columns.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedMetadata:
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


class PagedMetadata(NamedTuple):
    """The same for an attention that reads block tables itself (ops/attention/paged_cpu.py): no rectangle, no padding.

    Arrays on the host, of N nodes in S sequences. A sequence has the rows of the pass from rows[s] on: chains[s] known
    tokens at the positions from starts[s] on, then nodes[s] drafted ones, whose keys stand behind them in tree order.
    """

    cost: int  # query-key pairs per query head
    work_items: np.ndarray[
        Any, np.dtype[np.int64]
    ]  # [I, 3] sequence, first and end of some of its rows: one piece of work
    first_rows: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    num_computed_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    num_new_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    num_draft_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    block_tables: np.ndarray[Any, np.dtype[np.int64]]  # [S, blocks]
    first_nodes: np.ndarray[Any, np.dtype[np.int64]]  # [S] index of a sequence's first node among all
    depths: np.ndarray[Any, np.dtype[np.int64]]  # [N]
    ancestors: np.ndarray[Any, np.dtype[np.bool_]]  # [N or 1, most nodes] a node is its own ancestor


@dataclass(frozen=True)
class ForwardBatch:
    """One pass: inputs, where its keys and values go, which rows move before, and who reads what."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64 KV slots written by this pass
    copy_sources: Tensor  # [C] int64 KV slots moved before anything is written
    copy_targets: Tensor  # [C] int64
    logits_rows: Tensor  # [W] int64 rows whose scores are wanted
    prompt_logprob_rows: Tensor  # [R] int64 rows that say how likely the prompt's next token is
    padded: tuple[PaddedMetadata, ...]  # none where there are reads
    in_order: bool = False  # the pass is one group, whose queries are the rows 0, 1, ... T - 1
    paged: PagedMetadata | None = None
