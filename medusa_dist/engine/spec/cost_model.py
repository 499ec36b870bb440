"""CostModel: step time by number of rows, measured at start-up and corrected while serving.

Owns the corrected curve and the drafting time. Not here: the measurement (startup/step_cost.py), the correction's fit
(medusa/trees/cost_correction.py), what the cost decides (tree_policy.py, draft_gate.py).
"""

from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.cost_correction import CostCorrection, nearest_size

_SMOOTHING = 0.05  # weight of a new sample in the moving average of drafting time, per batch size


class CostModel:
    """measured: the curve from start-up; None if none was measured, in which case nothing depends on cost."""

    def __init__(self, measured: StepCost | None) -> None:
        self.measured = measured
        self._correction = CostCorrection()
        self._drafting_s: dict[int, float] = {}  # by the number of sequences

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """Record the time of a step without prompt tokens, drafting excluded."""
        if self.measured is not None:
            expected = self.measured(num_sequences + num_nodes)
            self._correction.learn(num_sequences, num_nodes, seconds, expected)

    def observe_drafting(self, num_sequences: int, seconds: float) -> None:
        """Record the time of the heads in a step with this many sequences."""
        before = self._drafting_s.get(num_sequences, seconds)
        self._drafting_s[num_sequences] = before + _SMOOTHING * (seconds - before)

    def of(self, num_sequences: int, with_heads: bool = True) -> StepCost:
        """The curve for steps with this many sequences, after which the heads run or not; requires a measured curve."""
        assert self.measured is not None, "no cost curve was measured"
        cost = self.measured
        if not with_heads:
            cost = cost.with_drafting(0.0)
        elif self._drafting_s:
            known = nearest_size(self._drafting_s, num_sequences)
            further = cost.drafting(num_sequences) - cost.drafting(known)
            cost = cost.with_drafting(max(0.0, self._drafting_s[known] + further))
        return cost.raised(self._correction.offset(num_sequences), self._correction.fixed, self._correction.slope)
