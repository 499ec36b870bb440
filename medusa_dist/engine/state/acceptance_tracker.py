"""AcceptanceTracker: pauses drafting for sequences whose drafts are rarely accepted.

Owns the moving average and the pause rule. Pure. Not here: when paused sequences are retried (spec/tree_policy.py), and
whether drafting pays for a batch at all (spec/draft_gate.py).
This covers a single sequence whose text the heads predict badly while the rest of the batch does well.
"""

from dataclasses import dataclass

MIN_TRIES = 16  # verified trees before a sequence can be paused
RETRY_EVERY = 64  # steps between retries; all paused sequences retry in the same step, since the heads run then anyway
_WEIGHT = 1 / 32  # of the moving average: about the last 32 trees
_RETRY_WEIGHT = 1 / 4  # a retry counts more, so that one good tree ends the pause


@dataclass
class AcceptanceTracker:
    """Belongs to one sequence. mean: moving average of accepted tokens per verified tree."""

    mean: float = 0.0
    num_tries: int = 0

    def learn(self, num_accepted: int, floor: float) -> None:
        """Record a verified tree."""
        weight = _RETRY_WEIGHT if self.is_paused(floor) else max(_WEIGHT, 1 / (self.num_tries + 1))
        self.num_tries += 1
        self.mean += weight * (num_accepted - self.mean)

    def is_paused(self, floor: float) -> bool:
        """Whether its trees yield fewer than `floor` accepted tokens on average."""
        return self.num_tries >= MIN_TRIES and self.mean < floor
