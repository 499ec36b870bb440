"""What real steps take beyond the measured cost curve: learned while serving, from every step without prompt rows.

Owns the fit. Pure but for what it remembers. Not here: the curve (budget.py), who asks (engine/spec/tree_policy.py).
The curve is measured with one short sequence. Real steps read the context of many, so they take longer, by a part that
drafts do not change (which makes drafts relatively cheaper), a part for having drafts at all, and one for each node
(which make them dearer):

    seconds = curve(rows) + offset(B) + fixed [nodes > 0] + slope nodes

The offset belongs to a number of sequences B and drifts with their lengths: a moving average. The other two are about
the same for all, and are fitted by least squares to how steps depart from those averages, so a step with other nodes
than usual tells most. Both are held down by a ridge, and neither is negative.
"""

from collections.abc import Collection

_FORGET_OFFSET = 0.05  # weight of the newest step: the last 20 or so count
_FORGET_FIT = 0.001  # the last 1,000 or so: plain steps are rare probes while drafts pay
_RIDGE_NODES = 30.0  # squared nodes; with less variation than this the slope stays near 0
_RIDGE_FIXED = 1.0  # steps
_MOST = 4.0  # times the curve that a step counts for at most: a busy machine is no property of drafts


class CostCorrection:
    """The line above, for one engine."""

    def __init__(self) -> None:
        self._averages: dict[int, tuple[float, float, float]] = {}  # B -> (nodes, share with drafts, seconds beyond)
        # Sums of products of departures: nodes x nodes, nodes x drafts, drafts x drafts, nodes x late, drafts x late.
        self._sums = [0.0] * 5
        self.slope = 0.0  # seconds of a drafted node beyond what the curve says of its row
        self.fixed = 0.0  # seconds of a step with drafts beyond one without, whatever its nodes

    def offset(self, num_sequences: int) -> float:
        """Seconds of a step with so many sequences and no drafts beyond the curve, by the most similar number seen; 0
        until one was."""
        if not self._averages:
            return 0.0
        known = nearest_size(self._averages, num_sequences)
        nodes, drafted, beyond = self._averages[known]
        return max(0.0, beyond - self.slope * nodes - self.fixed * drafted)

    def learn(self, num_sequences: int, num_nodes: int, seconds: float, foreseen: float) -> None:
        """See a step. foreseen: seconds by the curve."""
        beyond, drafted = min(seconds, _MOST * foreseen) - foreseen, float(num_nodes > 0)
        before = self._averages.get(num_sequences, (float(num_nodes), drafted, beyond))
        far, more, late = num_nodes - before[0], drafted - before[1], beyond - before[2]
        products = (far * far, far * more, more * more, far * late, more * late)
        self._sums = [new + (1.0 - _FORGET_FIT) * old for new, old in zip(products, self._sums, strict=True)]
        self.slope, self.fixed = _fit(*self._sums)
        change = tuple(_FORGET_OFFSET * x for x in (far, more, late))
        self._averages[num_sequences] = (before[0] + change[0], before[1] + change[1], before[2] + change[2])


def nearest_size(measured: Collection[int], num_sequences: int) -> int:
    """The batch size most like num_sequences of those that something was measured at, one at least."""
    return min(measured, key=lambda number: abs(number - num_sequences))


def _fit(nodes: float, both: float, drafted: float, nodes_late: float, drafted_late: float) -> tuple[float, float]:
    """Slope and fixed cost, neither negative, from the sums of products."""
    nodes, drafted = nodes + _RIDGE_NODES, drafted + _RIDGE_FIXED
    determinant = nodes * drafted - both * both  # positive: the ridge makes it so
    slope = (nodes_late * drafted - drafted_late * both) / determinant
    fixed = (drafted_late * nodes - nodes_late * both) / determinant
    if slope < 0.0:
        return 0.0, max(0.0, drafted_late / drafted)
    if fixed < 0.0:
        return max(0.0, nodes_late / nodes), 0.0
    return slope, fixed
