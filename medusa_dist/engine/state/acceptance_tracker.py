"""AcceptanceTracker: whether drafting for one sequence has been worth it, so that hopeless ones stop.

Owns the moving mean and the rule of resting. Pure. Not here: when those at rest are tried again, and whether heads run
for a batch at all, by measured cost (speculation.py); this is about a single sequence that the heads do not understand
while its neighbours do fine.
"""

from dataclasses import dataclass

MIN_TRIES = 16  # verified trees before a sequence is judged
RETRY_EVERY = 64  # steps between two in which those at rest are tried, all in the same one, since the heads run anyway
_WEIGHT = 1 / 32  # of the moving mean: about the last 32 trees
_RETRY_WEIGHT = 1 / 4  # a try at rest counts more, so that one good one wakes the sequence up


@dataclass
class AcceptanceTracker:
    """Belongs to a sequence. mean: accepted tokens per verified tree, lately."""

    mean: float = 0.0
    num_tries: int = 0

    def learn(self, num_accepted: int, floor: float) -> None:
        """A tree was verified."""
        weight = _RETRY_WEIGHT if self.is_paused(floor) else max(_WEIGHT, 1 / (self.num_tries + 1))
        self.num_tries += 1
        self.mean += weight * (num_accepted - self.mean)

    def is_paused(self, floor: float) -> bool:
        """Whether its trees have brought less than `floor` accepted tokens each."""
        return self.num_tries >= MIN_TRIES and self.mean < floor
