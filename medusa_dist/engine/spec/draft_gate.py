"""DraftGate: whether running the heads pays for a batch of this size.

Owns the predicted gain, its threshold, and the rare probe steps that keep it up to date. Not here: how many drafts a
step verifies (tree_policy.py), sequences with low acceptance (state/acceptance_tracker.py). Lookup has no gate: a
search costs some ten microseconds, and only what pays is verified. So the heads must pay over lookup alone.
"""

from collections import deque
from collections.abc import Sequence as Seq
from itertools import chain

from medusa_dist.engine.spec.cost_model import CostModel
from medusa_dist.medusa.trees.budget import StepCost, best_budget

MIN_GAIN = 1.05  # minimum predicted speed-up; lower values act on estimation noise
_PROBE_EVERY = 128  # steps between probes of the opposite decision: 0.8 % of the steps
_WARM_UP = 16  # trees seen before predictions are used
_FORGET = 0.001  # decay per step: about the last thousand steps count
_PRIOR = 2.0  # expected and accepted drafts that are always added, as a prior
_REMEMBERED = 256  # recent trees from whose values the gain is predicted
_BATCHES = 16  # at most this many batches are formed of those trees per prediction
_ASK_AGAIN = 16  # steps between two predictions for a batch size


class DraftGate:
    """The gate of one engine. It uses the values of recent trees, whatever the batch size they were drafted for."""

    def __init__(self, cost: CostModel, is_static: bool) -> None:
        self._cost = cost
        self._is_static = is_static  # a static tree is always verified
        # Values of recently drafted trees, and of those that the same steps would have had without heads.
        self._recent: deque[tuple[Seq[float], Seq[float]]] = deque(maxlen=_REMEMBERED)
        self._decisions: dict[int, tuple[bool, int]] = {}  # batch size -> do drafts pay, steps until asked again
        self._since_probe = 0
        self.num_asked = 0  # steps in which drafting was considered
        self._num_planned = 0  # nodes of this step, before the scheduler cut them
        self._has_room = True  # whether the scheduler had tokens and blocks for any of the last planned nodes
        self._expected = self._accepted = 0.0  # recent draft tokens, decayed

    def planned(self, num_nodes: int) -> None:
        """Record how many nodes this step's trees have, before the scheduler cuts them."""
        self._num_planned = num_nodes

    def drafted(self, values: Seq[float], without_heads: Seq[float] = ()) -> None:
        """Record the values of a tree that could have been verified in full, and of the tree without the heads."""
        self._recent.append((values, without_heads))

    def verified(self, num_nodes: int) -> None:
        """Record how many of the planned nodes the scheduler had room for."""
        if self._num_planned:
            self._has_room = num_nodes > 0
        self._expected *= 1.0 - _FORGET
        self._accepted *= 1.0 - _FORGET

    def accepted(self, expected: float, accepted: int) -> None:
        """Record the result of a tree: expected and accepted draft tokens."""
        self._expected += expected
        self._accepted += accepted

    @property
    def calibration_factor(self) -> float:
        """Accepted over expected drafts of recent steps, at most 1; multiplies all predicted values."""
        return min(1.0, (self._accepted + _PRIOR) / (self._expected + _PRIOR))

    def discounted(self, values: list[float]) -> list[float]:
        """The values times the calibration factor."""
        factor = self.calibration_factor
        return [factor * value for value in values]

    def should_draft(self, num_sequences: int) -> bool:
        """Whether to run the heads for a batch of this size.

        Rare probe steps do the opposite of the decision, to measure the real cost of drafting. While prompts use all
        tokens, or sequences all blocks, no tree can be verified.
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
        """Predicted speed-up by the heads, for this many sequences with drafts as good as the recent ones: the mean
        over batches formed of them."""
        assert self._recent, "nothing was drafted yet"
        trees = list(self._recent) * -(-num_sequences // len(self._recent))
        batches = [trees[i : i + num_sequences] for i in range(0, len(trees) - num_sequences + 1, num_sequences)]
        cost, plain_cost = self._cost.of(num_sequences, True), self._cost.of(num_sequences, False)
        gains = []
        for batch in batches[-_BATCHES:]:
            with_heads = self._speed_up([values for values, _ in batch], num_sequences, cost)
            without = self._speed_up([values for _, values in batch], num_sequences, plain_cost)
            gains.append(with_heads / without)
        return sum(gains) / len(gains)

    def _speed_up(self, trees: Seq[Seq[float]], num_sequences: int, cost: StepCost) -> float:
        """Predicted speed-up of these trees over no drafts at all."""
        values = self.discounted(sorted(chain.from_iterable(trees), reverse=True))
        return best_budget(values, num_sequences, 0, cost)[1]
