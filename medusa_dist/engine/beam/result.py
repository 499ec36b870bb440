"""What a step decided for the beams of a search.

Owns the nouns between selection (select.py) and what follows from it (group.py, beam_drafter.py).
"""

from dataclasses import dataclass

from torch import Tensor

from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.beam.beam_tree import BeamPath
from medusa_dist.medusa.beam.search import BeamTraversal, Ranked


@dataclass(frozen=True)
class Known:
    """What the model said of a row that was verified: its likeliest continuations, and what the heads read [I]."""

    ranked: Ranked
    hidden: Tensor


Memory = dict[BeamPath, Known]  # by the beam, in the order of search.outputs, and the tokens behind it


@dataclass(frozen=True)
class BeamResult(StepResult):
    """What a step decided for one beam: `sequence` goes on as `source` along `accepted`, a path in source's tree.

    All beams of a request have one, and share walk and memory. When the walk is over, `accepted` is empty.
    """

    source: Sequence
    walk: BeamTraversal
    used: tuple[int, ...]  # nodes of `sequence`'s own tree that any beam went through
    memory: Memory  # of beams that go on, or of what may follow them: verified, but their level was not complete

    @property
    def hits(self) -> tuple[int, ...]:
        """Nodes of the sequence's own tree that were right."""
        return self.used
