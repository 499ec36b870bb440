"""DraftGate: whether drafting pays for a batch of this size.

Owns the predicted gain, its threshold, and the rare probes that keep it fresh. Not here: how many drafts a step
verifies (tree_policy.py), sequences with low acceptance (engine/state/acceptance_tracker.py).
"""

from collections import deque
from collections.abc import Sequence as Seq
from itertools import chain

from medusa_dist.engine.spec.cost_model import CostModel
from medusa_dist.medusa.trees.budget import best_budget

MIN_GAIN = 1.05  # minimum predicted speed-up; lower values act on estimation noise
_PROBE_EVERY = 128  # steps between two probes of the opposite of the current decision: 0.8 % of the steps
_WARM_UP = 16  # trees seen before their values are believed
_FORGET = 0.001  # a step: expected and accepted drafts of the last thousand or so count
_PRIOR = 2.0  # expected and accepted drafts that are always counted in
_REMEMBERED = 256  # trees whose values predict the gain
_BATCHES = 16  # that those trees are dealt out to, at most, for one prediction
_ASK_AGAIN = 16  # steps between two predictions for a batch size


class DraftGate:
    """One engine's gate. It looks at the values of recent trees, of any batch."""

    def __init__(self, cost: CostModel, is_static: bool) -> None:
        self._cost = cost
        self._is_static = is_static  # a static tree is verified always
        self._recent: deque[Seq[float]] = deque(maxlen=_REMEMBERED)  # values of trees drafted lately
        self._decisions: dict[int, tuple[bool, int]] = {}  # batch size -> whether drafts pay, steps till asked again
        self._since_probe = 0
        self.num_asked = 0  # steps in which drafting was considered
        self._num_planned = 0  # nodes of this step, before the scheduler cut them
        self._has_room = True  # whether the scheduler had rows and blocks for any of the last ones planned
        self._expected = self._accepted = 0.0  # drafts lately

    def planned(self, num_nodes: int) -> None:
        """See how many nodes this step's trees have, before the scheduler cuts them."""
        self._num_planned = num_nodes

    def drafted(self, values: Seq[float]) -> None:
        """See the values of a tree that could have been verified in full."""
        self._recent.append(values)

    def verified(self, num_nodes: int) -> None:
        """See how many of the planned nodes the scheduler had room for."""
        if self._num_planned:
            self._has_room = num_nodes > 0
        self._expected *= 1.0 - _FORGET
        self._accepted *= 1.0 - _FORGET

    def accepted(self, expected: float, accepted: int) -> None:
        """See what became of a tree: accepted drafts as predicted, and in fact."""
        self._expected += expected
        self._accepted += accepted

    @property
    def calibration_factor(self) -> float:
        """Accepted over expected drafts lately, at most 1: values are multiplied by it."""
        return min(1.0, (self._accepted + _PRIOR) / (self._expected + _PRIOR))

    def discounted(self, values: list[float]) -> list[float]:
        """The values, corrected by recent acceptance."""
        factor = self.calibration_factor
        return [factor * value for value in values]

    def should_draft(self, num_sequences: int) -> bool:
        """Whether to run the drafter for a batch of this size.

        Rare probes do the opposite of what is decided, and so measure what drafts really cost. While prompts take all
        rows, or sequences all blocks, no tree can be verified.
        """
        self.num_asked += 1
        if not self._has_room and self.num_asked % _ASK_AGAIN:
            return False
        if self._cost.measured is None or self._is_static or len(self._recent) < _WARM_UP:
            return True
        self._since_probe += 1
        if self._since_probe >= _PROBE_EVERY:
            self._since_probe = 0
            return not self._pays(num_sequences)
        return self._pays(num_sequences)

    def _pays(self, num_sequences: int) -> bool:
        pays, steps = self._decisions.get(num_sequences, (False, 0))
        if steps == 0:
            pays, steps = self.gain(num_sequences) >= MIN_GAIN, _ASK_AGAIN
        self._decisions[num_sequences] = pays, steps - 1
        return pays

    def gain(self, num_sequences: int) -> float:
        """Predicted factor on the tokens per second of so many sequences, with drafts as good as the latest: the mean
        over the batches that can be made of them."""
        assert self._recent, "nothing was drafted yet"
        cost = self._cost.of(num_sequences)
        trees = list(self._recent) * -(-num_sequences // len(self._recent))
        batches = [trees[i : i + num_sequences] for i in range(0, len(trees) - num_sequences + 1, num_sequences)]
        gains = [
            best_budget(self.discounted(sorted(chain.from_iterable(batch), reverse=True)), num_sequences, 0, cost)[1]
            for batch in batches[-_BATCHES:]
        ]
        return sum(gains) / len(gains)
