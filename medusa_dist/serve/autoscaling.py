"""How many replicas the load needs: a pure policy on the counters of the fronts.

Owns the formula, and what stands in for counters that are missing or old. Not here: delays and bounds, which Ray Serve
applies afterwards (app.py passes them from the config). Serve's controller gets this module pickled by value, and must
not load the model's libraries: only the standard library may be imported here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

METRIC = "sequences"  # Front.record_autoscaling_stats: sequences running or waiting, those of a restarting group too


class Sample(Protocol):
    """One report of a front. timestamp: unix seconds."""

    timestamp: float
    value: float


def desired_replicas(loads: Sequence[float | None], num_queued: float, target: float, num_now: int) -> int:
    """ceil((sum of loads + num_queued) / target), with a floor of num_now while any load is unknown (None).

    loads: sequences, one entry per running replica. num_queued: requests that no replica has taken yet. target:
    sequences per replica. num_now: replicas wanted so far. A replica of unknown load may be full, so none is ended on
    a guess; known load alone may still ask for more.
    """
    # Serve averages num_queued over time: a request that waited for an instant is a fraction, and means nothing.
    desired = math.ceil((sum(load for load in loads if load is not None) + math.floor(num_queued)) / target)
    return max(desired, num_now) if None in loads else desired


def latest(samples: Sequence[Sample] | None, now: float, stale_s: float) -> float | None:
    """The newest report of a replica; None if there is none, or if it is older than stale_s seconds."""
    if not samples:
        return None
    newest = max(samples, key=lambda sample: sample.timestamp)
    return newest.value if now - newest.timestamp <= stale_s else None


class QueueDepthPolicy:
    """desired_replicas on what Serve knows. The newest report counts, not the mean of a window.

    A mean would show a burst only after a good part of the window; against flutter there are Serve's delays.
    """

    def __init__(self, target_sequences: float, stale_s: float) -> None:
        self._target_sequences = target_sequences
        self._stale_s = stale_s

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """ctx: Serve's AutoscalingContext. Returns the replicas wanted, and no state to keep."""
        reports: Mapping[Any, Sequence[Sample]] = (ctx.raw_metrics or {}).get(METRIC, {})
        loads = [latest(reports.get(replica), ctx.current_time, self._stale_s) for replica in ctx.running_replicas]
        num_queued = ctx.total_queued_requests or 0.0
        return desired_replicas(loads, num_queued, self._target_sequences, ctx.target_num_replicas), {}
