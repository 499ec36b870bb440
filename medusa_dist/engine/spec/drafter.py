"""Drafter: the interface of whatever guesses the next tokens.

Owns the protocol. Not here: drafting with heads (head_drafter.py), which guesses are verified (tree_policy.py).
"""

from collections.abc import Sequence as Seq
from typing import Protocol

import torch

from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.trees.tree import Candidates


class Drafter(Protocol):
    """Lives on rank 0. Guesses change the speed, never the output: the base model verifies each of them."""

    @property
    def max_depth(self) -> int:
        """Most tokens that it guesses ahead: the depth of its trees."""

    @property
    def top_k(self) -> int:
        """Guesses that it offers for each position."""

    def draft(self, results: Seq[StepResult], scores: Scores) -> list[Candidates | None]:
        """After a step: candidates for each result's sequence; None where none is to be drafted for.

        scores.hidden [W, I] are the hidden states of the step's logits rows; a result's last_row names its own.
        """

    def measure(self, num_sequences: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Seconds of drafting for so many sequences, measured now. dtype: of the hidden states."""
