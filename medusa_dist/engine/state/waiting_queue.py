"""WaitingQueue: sequences that have no slot yet, in the order in which they will get one.

Owns that order: lower priority numbers first, then first come, first served. A preempted sequence keeps its place in
it, which is before all of its priority that came later. Not here: when a slot is free (scheduler.py).
"""

from bisect import insort
from collections.abc import Iterator

from medusa_dist.engine.state.sequence import Sequence


class WaitingQueue:
    """A list that stays sorted by Sequence.turn."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def first(self) -> Sequence:
        """Whose turn it is; there is one."""
        return self._sequences[0]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in its place."""
        insort(self._sequences, sequence, key=lambda s: s.priority_key)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, admitted or aborted. Equal means the same one."""
        del self._sequences[next(i for i, other in enumerate(self._sequences) if other is sequence)]

    def check_integrity(self) -> None:
        """In order, and nobody twice."""
        turns = [sequence.priority_key for sequence in self._sequences]
        assert turns == sorted(set(turns)), "the queue is out of order"
