"""Drafter: the interface of everything that drafts tokens after a step.

Owns the protocol. Not here: drafting with Medusa heads (head_drafter.py), with heads that read the whole text
(context_drafter.py), which drafts are verified (engine/spec/tree_policy.py).
"""

from collections.abc import Sequence as Seq
from typing import Protocol

import torch

from medusa_dist.engine.runner.worker import RowReader, Scores
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.ops.attention.backend import AttentionBackend


class Drafter(Protocol):
    """Runs on rank 0. Drafts change the speed, never the output: the base model verifies each of them."""

    @property
    def max_depth(self) -> int:
        """Maximum depth of its trees: how many tokens ahead it guesses."""

    @property
    def top_k(self) -> int:
        """Number of guesses per position."""

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of a block of a draft layer's keys and values, and of its gathered copy; 0 without such a layer."""

    def follow_rows(self, num_blocks: int, attention: AttentionBackend) -> RowReader | None:
        """What follows all rows of all passes, over a KV pool of num_blocks blocks; None: nothing does. Called before
        the first pass, and again for another pool. attention: of the base model."""

    def draft(self, results: Seq[StepResult], scores: Scores) -> list[Candidates | None]:
        """After a step: candidates for each result's sequence; None where nothing is drafted.

        scores.hidden [W, I] are the hidden states of the step's logits rows; a result's last_row is the index of its
        own.
        """

    def measure(self, num_sequences: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Measured seconds of drafting for this many sequences. dtype: of the hidden states."""
