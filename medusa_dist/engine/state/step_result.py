"""What a step decided for a sequence, and for a beam.

Owns the nouns between judging (choose.py, judge_beams.py) and what follows from it (scheduler.py, beam.py, drafter.py).
"""

from dataclasses import dataclass

from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.outputs import TokenLogprobs


@dataclass(frozen=True)
class StepResult:
    """What a step decided for one sequence: the accepted path, and one logprob entry per token if asked for."""

    sequence: Sequence
    accepted: Accepted
    logprobs: tuple[TokenLogprobs, ...]
    last_row: int  # wanted row of the deepest accepted node (or the root): what the heads read next

    @property
    def hits(self) -> tuple[int, ...]:
        """Nodes of the sequence's own tree that were right."""
        return self.accepted.nodes
