"""Which numbers of rows steps are captured for, and which of them a step takes.

Owns that arithmetic. Pure. Not here: who decides (rank 0: scheduler/scheduler.py), what is captured (graphed_steps.py).
A step of n rows runs in the smallest bucket that holds it, its other rows being padding. Buckets are those numbers of
rows for which step times are measured (startup/step_cost.py), and go on in their ratio, so that padding is at most a
third of a larger step.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import count

EAGER = 0  # instead of a bucket: the step is not captured
MOST_ROWS = 512  # beyond it, matrix products take far longer than their launches


def graph_buckets(max_running: int, most_nodes: int) -> tuple[int, ...]:
    """Buckets for all steps in which every sequence decodes, as far as they have at most MOST_ROWS rows."""
    most = min(MOST_ROWS, max_running * (1 + most_nodes))
    found: list[int] = []
    for power in count(2):
        for rows in (1 << power, 3 << (power - 1)):  # 4, 6, 8, 12, 16, 24, ...
            found.append(rows)
            if rows >= most:
                return tuple(found)
    raise AssertionError("there is always a larger bucket")


def bucket_for(buckets: Sequence[int], num_rows: int) -> int:
    """The smallest bucket with at least num_rows rows; EAGER if there is none. buckets: ascending."""
    index = bisect_left(buckets, num_rows)
    return buckets[index] if index < len(buckets) else EAGER
