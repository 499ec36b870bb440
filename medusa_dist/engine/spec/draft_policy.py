"""DraftPolicy: the interface between the engine and the policy that decides about drafts.

Owns the protocol and its types. Not here: the policy that serves (tree_policy.py), those of the tools
(heads_tools/record_drafts.py, heads_tools/trace_steps.py).
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.tree import Tree


class PlannedTree(NamedTuple):
    """A tree to verify. values[i]: expected acceptance of node i, drafters[i]: who guessed it; () if unknown."""

    sequence: Sequence
    tree: Tree
    values: Seq[float]
    drafters: Seq[tuple[str, ...]] = ()


@dataclass
class DraftCounts:
    """Totals since the engine started."""

    num_expected: float = 0.0  # accepted draft tokens predicted by the values of verified trees
    num_steps_without_drafts: int = 0  # steps after which the heads did not run: no gain was predicted
    num_paused_sequence_steps: int = 0  # sequence-steps without heads because recent acceptance was too low


class DraftPolicy(Protocol):
    """The engine calls these in this order in each step: trees, learn, observe, select_for_drafting,
    observe_drafting."""

    counts: DraftCounts

    @property
    def measured_cost(self) -> StepCost | None:
        """Seconds of a step by number of rows, measured at start-up; None if not measured."""

    def trees(self, decoding: list[Sequence], num_other_rows: int, max_model_len: int) -> list[PlannedTree]:
        """A tree for each sequence that has candidates and can use them, within the budget.

        num_other_rows: prompt rows of the same step.
        """

    def learn(self, results: Seq[StepResult]) -> None:
        """Learn which drafts were accepted, while the sequences still have their trees."""

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """Record the time of a step without prompt tokens, drafting excluded."""

    def select_for_drafting(self, drafter: str, results: list[StepResult]) -> list[StepResult]:
        """The results whose sequences this drafter drafts for now."""

    def observe_drafting(self, drafter: str, num_sequences: int, seconds: float) -> None:
        """Record the time of this drafter in a step with this many sequences."""

    def is_paused(self, sequence: Sequence) -> bool:
        """Whether the sequence's recent acceptance is too low to draft for it."""
