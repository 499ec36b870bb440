"""WaitingQueue: sequences that have no slot yet, in the order in which they will get one.

Owns that order: lower priority numbers first, then first come, first served. A preempted sequence keeps its place in
it, which is before all of its priority that came later. Not here: when a slot is free (scheduler.py).
"""

from bisect import insort
from collections.abc import Iterator

from medusa_dist.engine.state.sequence import SequenceGroup


class WaitingQueue:
    """A list that stays sorted by Sequence.turn."""

    def __init__(self) -> None:
        self._groups: list[SequenceGroup] = []

    def __iter__(self) -> Iterator[SequenceGroup]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def first(self) -> SequenceGroup:
        """Whose turn it is; there is one."""
        return self._groups[0]

    def add(self, group: SequenceGroup) -> None:
        """Put a group in its place."""
        insort(self._groups, group, key=lambda s: s.priority_key)

    def remove(self, group: SequenceGroup) -> None:
        """Take a group out, admitted or aborted. Equal means the same one."""
        del self._groups[next(i for i, other in enumerate(self._groups) if other is group)]

    def check_integrity(self) -> None:
        """In order, and nobody twice."""
        turns = [group.priority_key for group in self._groups]
        assert turns == sorted(set(turns)), "the queue is out of order"
