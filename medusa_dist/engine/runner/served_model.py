"""ServedModel: what a worker needs of a model.

Owns the protocol. Not here: the models that serve (model/load.py), the one that does nothing (bench/null_model.py).
Shapes: T rows, R rows whose logits are needed, A width of the aux hidden states.
"""

from typing import Protocol

import torch
from torch import Tensor

from medusa_dist.ops.tp_group import TPGroup


class ServedModel(Protocol):
    """One rank's part of a model. Widths and shards are those of model/load.py."""

    @property
    def parallel(self) -> TPGroup:
        """Its ranks."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its hidden states."""

    @property
    def hidden_size(self) -> int:
        """Width H of the rows that the output matrix reads."""

    @property
    def vocab_size(self) -> int:
        """Tokens V."""

    @property
    def vocab_start(self) -> int:
        """The first token of this rank's shard of the logits."""

    @property
    def vocab_shard(self) -> int:
        """Columns of this rank's logits, padding included."""

    def forward(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, positions [T], rows [R] -> logits [R, vocab_shard], and what heads read of these rows."""

    def forward_all_rows(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same -> logits [R, vocab_shard], and what heads read of all T rows."""
