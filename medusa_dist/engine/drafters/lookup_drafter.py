"""LookupDrafter: drafts what followed the last tokens where they occurred before in the same sequence.

Owns when lookup runs. Not here: the search and the continuations (medusa/lookup/), how many drafts are verified
(engine/spec/tree_policy.py).
It needs no heads, no memory on the device, and no hidden states. It knows nothing of other sequences.
"""

import time
from collections.abc import Sequence as Seq

import torch

from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.lookup.continuations import NUM_GUESSES, continuations
from medusa_dist.medusa.lookup.suffix_index import SuffixIndex
from medusa_dist.medusa.trees.calibration import MAX_DEPTH
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.ops.attention.backend import AttentionBackend

_MEASURED_TOKENS = 1024  # of the sequence on which lookup is timed


class LookupDrafter:
    """max_nodes: most draft tokens that a step verifies, so no chain needs to be longer."""

    def __init__(self, max_nodes: int) -> None:
        self._max_depth = max(1, min(max_nodes, MAX_DEPTH))

    @property
    def max_depth(self) -> int:
        """Maximum depth of a tree."""
        return self._max_depth

    @property
    def top_k(self) -> int:
        """Number of guesses per position."""
        return NUM_GUESSES

    @property
    def kv_block_bytes(self) -> int:
        """It has no layer."""
        return 0

    def follow_rows(self, _num_blocks: int, _attention: AttentionBackend) -> None:
        """It reads tokens only."""

    def draft(self, results: Seq[StepResult], scores: Scores) -> list[Candidates | None]:
        """Candidates for the sequences that continue and repeat themselves; None for others, and for beams."""
        return [self._follow(result.sequence) for result in results]

    def _follow(self, sequence: Sequence) -> Candidates | None:
        if sequence.finish_reason is not None or sequence.is_beam or not sequence.request.params.speculation:
            return None
        return continuations(sequence.tokens, sequence.suffixes.occurrences(sequence.tokens), self._max_depth)

    def measure(self, num_sequences: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Median seconds of lookup for this many sequences that repeat themselves."""
        tokens = [place % 64 for place in range(_MEASURED_TOKENS)]
        index = SuffixIndex()
        times = []
        for _ in range(num_rounds + 1):  # the first round fills the index
            begin = time.perf_counter()
            for _ in range(num_sequences):
                continuations(tokens, index.occurrences(tokens), self._max_depth)
            times.append(time.perf_counter() - begin)
        return sorted(times[1:])[num_rounds // 2]
