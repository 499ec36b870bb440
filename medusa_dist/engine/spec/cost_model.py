"""CostModel: how long a step takes by its rows, measured at start and corrected while serving.

Owns the corrections and the time of drafting. Not here: the measurement at start (engine/startup/step_cost.py), their
arithmetic (medusa/trees/cost_correction.py), what the cost decides (tree_policy.py, draft_gate.py).
"""

from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.cost_correction import CostCorrection, nearest_size

_SMOOTHING = 0.05  # of the moving average of the time of drafting, per batch size


class CostModel:
    """measured: the curve from start-up; None where none was measured, and then nothing depends on cost."""

    def __init__(self, measured: StepCost | None) -> None:
        self.measured = measured
        self._correction = CostCorrection()
        self._drafting_s: dict[int, float] = {}  # by the number of sequences

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """See how long a step without prompt rows took, drafting not included."""
        if self.measured is not None:
            expected = self.measured(num_sequences + num_nodes)
            self._correction.learn(num_sequences, num_nodes, seconds, expected)

    def observe_drafting(self, num_sequences: int, seconds: float) -> None:
        """See how long drafting took in a step with so many sequences."""
        before = self._drafting_s.get(num_sequences, seconds)
        self._drafting_s[num_sequences] = before + _SMOOTHING * (seconds - before)

    def of(self, num_sequences: int) -> StepCost:
        """The curve for steps of so many sequences. Only where one was measured."""
        assert self.measured is not None, "no cost curve was measured"
        cost = self.measured
        if self._drafting_s:
            known = nearest_size(self._drafting_s, num_sequences)
            further = cost.drafting(num_sequences) - cost.drafting(known)
            cost = cost.with_drafting(max(0.0, self._drafting_s[known] + further))
        return cost.raised(self._correction.offset(num_sequences), self._correction.fixed, self._correction.slope)
