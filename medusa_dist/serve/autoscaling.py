"""Autoscaling policy: replicas by load, a pure function of the replicas' counters.

Owns the formula, and the values used for missing or stale counters. Not here: delays and bounds, which Ray Serve
applies afterwards (app.py passes them from the config). Serve's controller gets this module pickled by value and must
not load the model's libraries: import only the standard library here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

METRIC = "sequences"  # LLMReplica.record_autoscaling_stats: running or waiting, also while the group restarts


class Sample(Protocol):
    """One report of a replica. timestamp: unix seconds."""

    timestamp: float
    value: float


def desired_replicas(loads: Sequence[float | None], num_queued: float, target: float, num_now: int) -> int:
    """ceil((sum of loads + num_queued) / target), but at least num_now while any load is unknown (None).

    loads: sequences, one entry per running replica. num_queued: requests not yet assigned to a replica. target:
    sequences per replica. num_now: current number of desired replicas. A replica of unknown load may be full, so no
    replica is stopped on a guess; the known load may still require more.
    """
    # Serve averages num_queued over time: a request that waited only briefly is a fraction, and is ignored.
    desired = math.ceil((sum(load for load in loads if load is not None) + math.floor(num_queued)) / target)
    return max(desired, num_now) if None in loads else desired


def latest(samples: Sequence[Sample] | None, now: float, stale_s: float) -> float | None:
    """The newest report of a replica; None if there is none or it is older than stale_s seconds."""
    if not samples:
        return None
    newest = max(samples, key=lambda sample: sample.timestamp)
    return newest.value if now - newest.timestamp <= stale_s else None


class QueueDepthPolicy:
    """desired_replicas, applied to Serve's data. Uses the newest report of a replica, not the mean of a window.

    A mean would show a burst only after much of the window has passed; Serve's delays prevent oscillation.
    """

    def __init__(self, target_sequences: float, stale_s: float) -> None:
        self._target_sequences = target_sequences
        self._stale_s = stale_s

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """ctx: Serve's AutoscalingContext. Returns the desired replicas, and an empty state."""
        reports: Mapping[Any, Sequence[Sample]] = (ctx.raw_metrics or {}).get(METRIC, {})
        loads = [latest(reports.get(replica), ctx.current_time, self._stale_s) for replica in ctx.running_replicas]
        num_queued = ctx.total_queued_requests or 0.0
        return desired_replicas(loads, num_queued, self._target_sequences, ctx.target_num_replicas), {}
