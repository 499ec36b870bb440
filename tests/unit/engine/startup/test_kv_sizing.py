"""How many KV blocks a rank holds, by hand."""

import pytest

from medusa_dist.config import parse_config
from medusa_dist.engine.startup.kv_sizing import DeviceMemory, gathered_block_bytes, kv_blocks


def config(**keys: object):
    return parse_config({"model": "x", "max_running": 4, "memory_fraction": 0.8} | keys)


def test_kv_blocks_on_a_gpu_fill_the_memory_fraction_that_is_left() -> None:
    memory = DeviceMemory(free=6000, total=10_000)
    assert abs(memory.spare(0.8) - (6000 - 2500)) <= 1  # the 20% that are not ours, and 5% for workspace
    assert gathered_block_bytes(100, 4) == 150
    assert kv_blocks(config(), 10_000, 4, 100, memory) == 3500 // 150
    assert kv_blocks(config(), 32, 4, 100, memory) == 4 * 2  # no more than all that may run can use
    assert kv_blocks(config(), 10_000, 4, 100, DeviceMemory(2000, 10_000)) < 2
    assert abs(DeviceMemory(6000, 10_000, workspace=700).spare(0.8) - (6000 - 2000 - 700)) <= 1  # measured
    assert kv_blocks(config(kv_cache_tokens=33), 10_000, 4, 100, memory) == 3


@pytest.mark.parametrize(
    ("max_model_len", "block", "blocks"),
    [
        (40, 1 << 10, 4 * 3),  # all that may run
        (1600, 1 << 23, 128),  # at most a GiB
        (1600, 1 << 24, 100),  # but the longest sequence fits
    ],
)
def test_kv_blocks_on_a_cpu_are_bounded_by_demand_and_a_gib(max_model_len: int, block: int, blocks: int) -> None:
    assert kv_blocks(config(), max_model_len, 2, block, None) == blocks
