"""ForwardBatch: the tensors of one Plan, as read by the forward pass and attention.

Owns the types and their shapes. Not here: how they are built from a Plan and block tables
(engine/runner/batch_builder.py).
Shapes: T rows of the batch (prompt tokens, roots, draft tokens, padding), W rows that need logits, and per attention
group B sequences x Q query rows x L KV indices.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedMetadata:
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


class PagedMetadata(NamedTuple):
    """Metadata of a backend that reads block tables itself (ops/attention/paged_cpu.py): no rectangle, no padding.

    Host arrays for N draft tokens in S sequences. Sequence s has the rows from first_rows[s] on: num_new_tokens[s]
    known tokens at positions from num_computed_tokens[s] on, then num_draft_tokens[s] draft tokens, whose keys follow
    in tree order.
    """

    cost: int  # query-key pairs per query head
    work_items: np.ndarray[Any, np.dtype[np.int64]]  # [I, 3] sequence, begin and end of the rows of one work item
    first_rows: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    num_computed_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    num_new_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    num_draft_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [S]
    block_tables: np.ndarray[Any, np.dtype[np.int64]]  # [S, blocks]
    first_nodes: np.ndarray[Any, np.dtype[np.int64]]  # [S] index of the sequence's first draft token among all
    depths: np.ndarray[Any, np.dtype[np.int64]]  # [N]
    ancestors: np.ndarray[Any, np.dtype[np.bool_]]  # [N or 1, most draft tokens] a node is its own ancestor


@dataclass(frozen=True)
class ForwardBatch:
    """One forward pass: its inputs, where its keys and values go, which rows are copied first, and which query reads
    what."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64 KV slots written by this pass
    copy_sources: Tensor  # [C] int64 KV slots copied before anything is written
    copy_targets: Tensor  # [C] int64
    logits_rows: Tensor  # [W] int64 rows that need logits
    prompt_logprob_rows: Tensor  # [R] int64 rows that score the next prompt token
    padded: tuple[PaddedMetadata, ...]  # empty where there is paged metadata
    in_order: bool = False  # the batch is one group, whose queries are the rows 0, 1, ... T - 1
    paged: PagedMetadata | None = None
