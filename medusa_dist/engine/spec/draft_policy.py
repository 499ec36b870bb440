"""DraftPolicy: the interface between the engine and whatever decides about drafts.

Owns the protocol and what it exchanges. Not here: the policy that serves (tree_policy.py), those of the tools that
look inside (heads_tools/record_drafts.py, heads_tools/trace_steps.py).
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.tree import Tree


class PlannedTree(NamedTuple):
    """A tree to verify. values[i]: expected acceptance of node i, calibrated; () where it is unknown."""

    sequence: Sequence
    tree: Tree
    values: Seq[float]


@dataclass
class DraftCounts:
    """Totals since the engine started."""

    num_expected: float = 0.0  # accepted drafts that the verified trees' values predict
    num_steps_without_drafts: int = 0  # steps after which no drafter ran: no gain was predicted
    num_paused_sequence_steps: int = 0  # times a sequence was left out because its recent acceptance was too low


class DraftPolicy(Protocol):
    """Called by the engine in this order in each step: trees, learn, observe, select_for_drafting, observe_drafting."""

    counts: DraftCounts

    @property
    def measured_cost(self) -> StepCost | None:
        """Seconds of a step by its rows, as measured at start; None where that was not measured."""

    def trees(self, decoding: list[Sequence], num_other_rows: int, max_model_len: int) -> list[PlannedTree]:
        """A tree for each sequence that has candidates and use for them, within the budget.

        num_other_rows: prompt rows of the same step.
        """

    def learn(self, results: Seq[StepResult]) -> None:
        """See which drafts were accepted, while the sequences still hold their trees."""

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """See how long a step without prompt rows took, drafting not included."""

    def select_for_drafting(self, results: list[StepResult]) -> list[StepResult]:
        """Those whose sequences are drafted for now."""

    def observe_drafting(self, num_sequences: int, seconds: float) -> None:
        """See how long drafting took in a step with so many sequences."""

    def is_paused(self, sequence: Sequence) -> bool:
        """Whether its recent acceptance is too low to draft for it."""
