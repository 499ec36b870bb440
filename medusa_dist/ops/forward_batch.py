"""The tensor image of one Plan: what the forward pass and attention read.

Owns the shapes; made by one function (engine/runner/batch_builder.py) from a Plan and the rank's block tables.
Shapes: T rows of the pass (prompt tokens, roots, drafted nodes, padding), W rows whose logits are needed.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
    attention: Any  # what the attention backend made of the layout (AttentionBackend.metadata)
