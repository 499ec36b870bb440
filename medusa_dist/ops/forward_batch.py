"""ForwardBatch: the tensors of one Plan, as read by the forward pass and attention.

Owns the type and its shapes. Not here: how it is built from a Plan and block tables (engine/runner/batch_builder.py),
attention metadata (ops/attention/metadata.py).
Shapes: T rows of the batch (prompt tokens, roots, draft tokens, padding), W rows that need logits, R rows for prompt
logprobs, C copies.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """One forward pass: its inputs, where its keys and values go, and which rows are copied first."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64 KV slots written by this pass
    copy_sources: Tensor  # [C] int64 KV slots copied before anything is written
    copy_targets: Tensor  # [C] int64
    logits_rows: Tensor  # [W] int64 rows that need logits
    prompt_logprob_rows: Tensor  # [R] int64 rows that score the next prompt token
    attention: Any  # the backend's metadata (AttentionBackend.metadata)
