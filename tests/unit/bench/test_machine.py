"""The machine's facts."""

import torch

from medusa_dist.bench.machine import machine, read_bandwidth


def test_measured_bandwidth_is_plausible_for_memory() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu"), 1 << 24) < 1e13


def test_machine_facts_name_cpu_device_and_threads() -> None:
    found = machine(torch.device("cpu"))
    assert found["cpu"] and found["device"] == "cpu" and found["threads"] == torch.get_num_threads()
