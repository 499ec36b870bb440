"""Laps without gaps, and waiting for a GPU only when asked to."""

import time

import pytest
import torch

from medusa_dist.engine.runner.phase_timer import PhaseTimer


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list: tests set it."""
    times = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: times[0])
    return times


def test_laps_add_up_to_the_time_since_each_start(now: list[float]) -> None:
    clock = PhaseTimer()
    for begin in (100.0, 200.0):  # what passes between two steps is no phase
        now[0] = begin
        clock.start()
        now[0] = begin + 1
        clock.lap("forward")
        now[0] = begin + 3
        clock.lap("sample")
        clock.lap("copy")
    assert clock.seconds == {"forward": 2.0, "sample": 4.0, "copy": 0.0}


def test_timer_waits_for_a_gpu_and_not_for_a_cpu(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []

    def synchronize(device: torch.device) -> None:
        waits.append(device)
        now[0] += 5.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock = PhaseTimer()
    clock.start()
    clock.lap("forward")
    clock.wait_for(torch.device("cpu"))
    clock.lap("forward")
    assert not waits
    clock.wait_for(torch.device("cuda", 0))
    clock.lap("forward")
    assert waits == [torch.device("cuda", 0)] and clock.seconds == {"forward": 5.0}
