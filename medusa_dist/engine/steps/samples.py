"""StepSample: the numbers of one step that histograms are made of, without its trees.

Owns what a sample has. Not here: how it is made (record.py), the histograms (serve/metrics.py). No torch: replicas
import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_SAMPLES = 1024  # that wait for a reader; older ones are dropped


@dataclass(frozen=True, slots=True)
class StepSample:
    """seconds: by phase. num_nodes: draft tokens verified. sequence_tokens: tokens that the step gave to each sequence
    that emitted. queue_seconds: how long each request waited that ran for the first time."""

    seconds: Mapping[str, float]
    num_nodes: int
    sequence_tokens: tuple[int, ...]
    queue_seconds: tuple[float, ...]
