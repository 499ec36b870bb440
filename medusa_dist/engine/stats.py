"""What the engine counts about itself: totals since start and gauges of now.

Owns the numbers. Not here: how they are exported (serve/metrics.py).
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="Timed")


@dataclass(frozen=True)
class EngineStats:
    """A snapshot. Counts are totals since the engine started; tokens are output tokens unless named otherwise."""

    num_running: int = 0
    num_waiting: int = 0
    kv_used_fraction: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_drafted: int = 0
    num_expected: float = 0.0  # accepted drafts that calibrated confidences predicted
    accepted_per_head: tuple[int, ...] = ()
    num_preemptions: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that became output."""
        return sum(self.accepted_per_head)


class Timed(Protocol):
    """Whatever has a place for the seconds of its phases."""

    phase_seconds: dict[str, float]


def timed(phase: str) -> Callable[[Callable[Concatenate[T, P], R]], Callable[Concatenate[T, P], R]]:
    """Decorator of a method: adds its wall time to `self.phase_seconds[phase]`."""

    def decorate(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
        @functools.wraps(method)
        def measured(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            begin = time.perf_counter()
            result = method(self, *args, **kwargs)
            self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + time.perf_counter() - begin
            return result

        return measured

    return decorate
