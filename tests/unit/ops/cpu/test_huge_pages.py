"""Huge pages: what is asked for, and that asking changes nothing but speed."""

import re
import sys
from pathlib import Path

import pytest
import torch

from medusa_dist.ops.cpu.huge_pages import anonymous_ranges, use_huge_pages, zeros_on_demand

MAPS = """\
00400000-00c00000 r-xp 00000000 08:01 123 /usr/bin/python3
00c00000-01000000 rw-p 00800000 08:01 123 /usr/bin/python3
01100000-02a00000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
7f0000200000-7f0000600000 rw-p 00000000 00:00 0
7f0000700000-7f0000f00000 ---p 00000000 00:00 0
7f0001000000-7f0001800000 rw-s 00000000 00:01 9 /dev/shm/x
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""


def test_anonymous_ranges_are_private_memory_in_whole_huge_pages() -> None:
    assert anonymous_ranges(MAPS) == [(0x1200000, 0x2A00000), (0x7F0000200000, 0x7F0000600000)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_on_demand_are_zeros_that_take_memory_once_written(dtype: torch.dtype) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    x = zeros_on_demand((64, 1 << 20), dtype)
    assert x.shape == (64, 1 << 20) and x.dtype == dtype
    assert resident() - before < x.nbytes // 4
    x[3] = 1
    assert x[3].eq(1).all() and x[2].eq(0).all() and resident() - before < x.nbytes // 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_use_huge_pages_keeps_the_contents_of_memory() -> None:
    x = torch.arange(1 << 23, dtype=torch.float32)
    before = x.clone()
    moved = use_huge_pages()
    assert torch.equal(x, before)
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if enabled.exists() and "[never]" not in enabled.read_text() and moved:
        rollup = Path("/proc/self/smaps_rollup").read_text()
        held = re.search(r"AnonHugePages:\s+(\d+) kB", rollup)
        assert held is not None and int(held[1]) << 10 >= x.nbytes // 2
