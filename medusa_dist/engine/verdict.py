"""What a step decided for a sequence, and for a beam.

Owns the nouns between judging (choose.py, judge_beams.py) and what follows from it (scheduler.py, beam.py, drafter.py).
"""

from dataclasses import dataclass

from medusa_dist.engine.sequence import Sequence
from medusa_dist.medusa.accept import Accepted
from medusa_dist.medusa.beam import BeamWalk
from medusa_dist.request import TokenLogprobs


@dataclass(frozen=True)
class Verdict:
    """What a step decided for one sequence: the accepted path, and one logprob entry per token if asked for."""

    sequence: Sequence
    accepted: Accepted
    logprobs: tuple[TokenLogprobs, ...]
    last_row: int  # wanted row of the deepest accepted node (or the root): what the heads read next

    @property
    def hits(self) -> tuple[int, ...]:
        """Nodes of the sequence's own tree that were right."""
        return self.accepted.nodes


@dataclass(frozen=True)
class BeamVerdict(Verdict):
    """What a step decided for one beam: `sequence` goes on as `source` along `accepted`, a path in source's tree.

    All beams of a request have one, and share the walk. When that is over, `accepted` is empty.
    """

    source: Sequence
    walk: BeamWalk
    used: tuple[int, ...]  # nodes of `sequence`'s own tree that any beam went through

    @property
    def hits(self) -> tuple[int, ...]:
        """Nodes of the sequence's own tree that were right."""
        return self.used
