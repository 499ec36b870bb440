"""WaitingQueue: sequence groups that wait for admission, in the order of admission.

Owns that order: lower priority numbers first, then first come, first served. A preempted group keeps its position,
ahead of all later ones of its priority. Not here: when a group is admitted (scheduler/scheduler.py).
"""

from bisect import insort
from collections.abc import Iterator

from medusa_dist.engine.state.sequence import SequenceGroup


class WaitingQueue:
    """A list kept sorted by SequenceGroup.priority_key."""

    def __init__(self) -> None:
        self._groups: list[SequenceGroup] = []

    def __iter__(self) -> Iterator[SequenceGroup]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def first(self) -> SequenceGroup:
        """The next group to admit; the queue must not be empty."""
        return self._groups[0]

    def add(self, group: SequenceGroup) -> None:
        """Insert a group at its position."""
        insort(self._groups, group, key=lambda s: s.priority_key)

    def remove(self, group: SequenceGroup) -> None:
        """Remove a group that was admitted or aborted. Compares by identity."""
        del self._groups[next(i for i, other in enumerate(self._groups) if other is group)]

    def check_integrity(self) -> None:
        """The queue is sorted and holds no group twice."""
        keys = [group.priority_key for group in self._groups]
        assert keys == sorted(set(keys)), "the queue is out of order"
