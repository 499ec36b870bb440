"""What real steps take beyond the measured cost curve: learned while serving, from every step without prompt rows.

Owns the fit. Pure but for what it remembers. Not here: the curve (budget.py), who asks (engine/speculation.py).
The curve is measured with one short sequence. Real steps read the context of many, so they take longer, by a part that
drafts do not change (which makes drafts relatively cheaper) and a part for each drafted node (which makes them dearer):

    seconds = curve(rows) + offset(B) + slope * nodes

The offset belongs to a number of sequences B and drifts with their lengths: a moving average. The slope is about the
same for all, and is fitted to how steps depart from those averages, so a step with other nodes than usual tells most.
"""

_FORGET_OFFSET = 0.05  # weight of the newest step: the last 20 or so count
_FORGET_SLOPE = 0.004  # the last 250 or so
_RIDGE = 30.0  # squared nodes; with less variation than this the slope stays near 0
_MOST = 4.0  # times the curve that a step counts for at most: a busy machine is no property of drafts


class Excess:
    """The line above, for one engine."""

    def __init__(self) -> None:
        self._averages: dict[int, tuple[float, float]] = {}  # B -> (nodes, seconds beyond the curve)
        self._squares = 0.0
        self._products = 0.0

    @property
    def slope(self) -> float:
        """Seconds of a drafted node beyond what the curve says of its row; never negative."""
        return max(0.0, self._products / (self._squares + _RIDGE))

    def offset(self, num_sequences: int) -> float:
        """Seconds of a step with so many sequences and no drafts beyond the curve, by the most similar number seen; 0
        until one was."""
        if not self._averages:
            return 0.0
        nodes, beyond = self._averages[min(self._averages, key=lambda number: abs(number - num_sequences))]
        return max(0.0, beyond - self.slope * nodes)

    def learn(self, num_sequences: int, num_nodes: int, seconds: float, foreseen: float) -> None:
        """See a step. foreseen: seconds by the curve."""
        beyond = min(seconds, _MOST * foreseen) - foreseen
        nodes_before, beyond_before = self._averages.get(num_sequences, (float(num_nodes), beyond))
        far, late = num_nodes - nodes_before, beyond - beyond_before
        self._squares += far * far - _FORGET_SLOPE * self._squares
        self._products += far * late - _FORGET_SLOPE * self._products
        self._averages[num_sequences] = (nodes_before + _FORGET_OFFSET * far, beyond_before + _FORGET_OFFSET * late)
