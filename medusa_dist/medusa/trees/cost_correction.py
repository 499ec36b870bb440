"""CostCorrection: what real steps cost beyond the measured curve, learned while serving.

Owns the fit. Pure except for its state. Not here: the curve (budget.py), its use (engine/spec/tree_policy.py).
The curve is measured with one short sequence. Real steps read the context of many sequences and take longer: by a part
that does not depend on drafts (which makes drafts relatively cheaper), a part for having any drafts, and a part for
each node (which make them more expensive):

    seconds = curve(rows) + offset(B) + fixed [nodes > 0] + slope nodes

The offset depends on the number of sequences B and drifts with their lengths: a moving average. The other two are about
the same for all B. They are fitted by least squares to deviations from those averages, so steps with an unusual number
of nodes count most. Both are regularised by a ridge, and neither is negative. It learns from every step without prompt
rows.
"""

from collections.abc import Collection

_FORGET_OFFSET = 0.05  # weight of the newest step: about the last 20 steps count
_FORGET_FIT = 0.001  # about the last 1,000 steps count: plain steps are rare probes while drafts pay
_RIDGE_NODES = 30.0  # squared nodes; with less variation than this the slope stays near 0
_RIDGE_FIXED = 1.0  # steps
_MOST = 4.0  # cap, as a multiple of the curve: a busy machine says nothing about drafts


class CostCorrection:
    """The line above, for one engine."""

    def __init__(self) -> None:
        self._averages: dict[int, tuple[float, float, float]] = {}  # B -> (nodes, share with drafts, excess seconds)
        # Sums of products of deviations: nodes x nodes, nodes x drafts, drafts x drafts, nodes x excess, drafts x
        # excess.
        self._sums = [0.0] * 5
        self.slope = 0.0  # seconds per draft token beyond the curve's cost of its row
        self.fixed = 0.0  # extra seconds of a step with drafts, independent of the number of nodes

    def offset(self, num_sequences: int) -> float:
        """Seconds beyond the curve of a step with this many sequences and no drafts, taken from the nearest batch size
        seen; 0 if there is none."""
        if not self._averages:
            return 0.0
        known = nearest_size(self._averages, num_sequences)
        nodes, drafted, beyond = self._averages[known]
        return max(0.0, beyond - self.slope * nodes - self.fixed * drafted)

    def learn(self, num_sequences: int, num_nodes: int, seconds: float, foreseen: float) -> None:
        """Record a step. foreseen: seconds predicted by the curve."""
        beyond, drafted = min(seconds, _MOST * foreseen) - foreseen, float(num_nodes > 0)
        before = self._averages.get(num_sequences, (float(num_nodes), drafted, beyond))
        far, more, late = num_nodes - before[0], drafted - before[1], beyond - before[2]
        products = (far * far, far * more, more * more, far * late, more * late)
        self._sums = [new + (1.0 - _FORGET_FIT) * old for new, old in zip(products, self._sums, strict=True)]
        self.slope, self.fixed = _fit(*self._sums)
        change = tuple(_FORGET_OFFSET * x for x in (far, more, late))
        self._averages[num_sequences] = (before[0] + change[0], before[1] + change[1], before[2] + change[2])


def nearest_size(measured: Collection[int], num_sequences: int) -> int:
    """The batch size nearest to num_sequences among those measured; there must be at least one."""
    return min(measured, key=lambda number: abs(number - num_sequences))


def _fit(nodes: float, both: float, drafted: float, nodes_late: float, drafted_late: float) -> tuple[float, float]:
    """Slope and fixed cost, neither negative, from the sums of products."""
    nodes, drafted = nodes + _RIDGE_NODES, drafted + _RIDGE_FIXED
    determinant = nodes * drafted - both * both  # positive, because of the ridge
    slope = (nodes_late * drafted - drafted_late * both) / determinant
    fixed = (drafted_late * nodes - nodes_late * both) / determinant
    if slope < 0.0:
        return 0.0, max(0.0, drafted_late / drafted)
    if fixed < 0.0:
        return max(0.0, nodes_late / nodes), 0.0
    return slope, fixed
