"""The machine's facts."""

import torch

from medusa_dist.bench.machine import machine, read_bandwidth


def test_bandwidth_is_that_of_memory_and_not_of_a_clock() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu"), 1 << 24) < 1e13


def test_what_is_quoted() -> None:
    found = machine(torch.device("cpu"))
    assert found["cpu"] and found["device"] == "cpu" and found["threads"] == torch.get_num_threads()
