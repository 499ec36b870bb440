"""BeamResult: the outcome of a step for one beam of a search.

Owns the types passed from selection (select.py) to the group and its drafter (group.py, beam_drafter.py). Not here: the
outcome for other sequences (state/sequence.py).
"""

from dataclasses import dataclass

from torch import Tensor

from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.beam.beam_tree import BeamPath
from medusa_dist.medusa.beam.search import BeamTraversal, Ranked


@dataclass(frozen=True)
class Known:
    """The model's result for a verified row: its most likely continuations, and what the heads read there [I]."""

    ranked: Ranked
    hidden: Tensor


Memory = dict[BeamPath, Known]  # by beam (in the order of search.outputs) and the tokens after it


@dataclass(frozen=True)
class BeamResult(StepResult):
    """The outcome of a step for one beam: `sequence` continues `source` along `accepted`, a path in source's tree.

    All beams of a request have one, and share walk and memory. When the search is over, `accepted` is empty.
    """

    source: Sequence
    traversal: BeamTraversal
    used: tuple[int, ...]  # nodes of `sequence`'s own tree that any beam passed through
    memory: Memory  # for active beams and their possible continuations: verified, but at a level that was not complete

    @property
    def hits(self) -> tuple[int, ...]:
        """Nodes of the sequence's own tree that were accepted."""
        return self.used
