"""StepNotes: why a sequence's trees are as large as they are, and the records of its steps.

Owns what is noted for requests with `explain`, and the bounds of a record. Not here: the decisions that are noted
(spec/tree_policy.py), the form in which clients get records (api/step_records.py).
"""

from collections.abc import Sequence as Seq

from medusa_dist.medusa.trees.replay import node_chances
from medusa_dist.medusa.trees.tree import Tree
from medusa_dist.outputs import StepRecord, TreeReason

MAX_NODES = 64  # recorded of a tree, besides accepted ones
MAX_TOKENS = 2048  # output tokens of a request whose steps are recorded: with MAX_NODES, a bound of its records


class StepNotes:
    """Notes on the step that a sequence is in.

    undrafted: the reason if the sequence has no drafts to verify. values: expected acceptance of each verified draft.
    """

    def __init__(self) -> None:
        self.undrafted = TreeReason.PROMPT
        self.values: Seq[float] = ()
        self._limit = TreeReason.ALL  # what bounded the drafts on offer
        self._num_offered = self._num_planned = 0
        self._num_sequences = 1
        self._speed_up: float | None = None

    def restart(self) -> None:
        """All tokens will be computed again."""
        self.undrafted = TreeReason.PROMPT

    def begin(self, num_sequences: int) -> None:
        """A step that decodes this many sequences is being planned."""
        self._limit, self._num_offered, self._num_planned = TreeReason.LAST_TOKEN, 0, 0
        self._num_sequences, self._speed_up = num_sequences, None
        self.values = ()

    def offer(self, num_drafts: int, limit: TreeReason) -> None:
        """So many drafts could be verified, and limit is why there are no more."""
        self._num_offered = self._num_planned = num_drafts
        self._limit = limit

    def plan(self, num_drafts: int, speed_up: float | None) -> None:
        """The budget covers so many drafts, with this predicted speed-up of the batch."""
        self._num_planned, self._speed_up = num_drafts, speed_up

    def reason(self, num_drafts: int, has_candidates: bool) -> TreeReason:
        """Why num_drafts drafts are verified."""
        if not has_candidates:
            return self.undrafted
        if num_drafts < self._num_planned:
            return TreeReason.ROOM
        return TreeReason.BUDGET if self._num_planned < self._num_offered else self._limit

    def record(
        self,
        tree: Tree,
        drafters: Seq[tuple[str, ...]],
        accepted: tuple[int, ...],
        num_tokens: int,
        reason: TreeReason,
    ) -> StepRecord:
        """The record of the step. drafters: of the nodes, or () if unknown; accepted: those that became output.

        Of a tree that is too large, the first nodes, which have the highest values, and the accepted ones.
        """
        chances = node_chances(tree, self.values) if len(self.values) == len(tree) else []
        kept = sorted({*range(min(len(tree), MAX_NODES)), *accepted})  # with the parent of each
        places = {node: place for place, node in enumerate(kept)}
        return StepRecord(
            tokens=tuple(tree.tokens[node] for node in kept),
            parents=tuple(places.get(tree.parents[node], -1) for node in kept),
            chances=tuple(chances[node] for node in kept) if chances else (),
            drafters=tuple(drafters[node] if drafters else () for node in kept),
            accepted=tuple(places[node] for node in accepted),
            num_tokens=num_tokens,
            num_drafts=len(tree),
            num_offered=self._num_offered,
            num_sequences=self._num_sequences,
            speed_up=self._speed_up,
            reason=reason,
        )
