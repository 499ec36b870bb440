"""Huge pages for the memory that a CPU reads in every step: weights and KV cache.

Owns the madvise calls to the kernel. Not here: who allocates that memory (model/load.py, ops/attention/kv_cache.py).
Packed weights are included. With pages of 4 KiB, reading 540 MB of weights per step causes a hundred thousand TLB
misses; with pages of 2 MiB a step of the demo model on two cores took 46 ms instead of 53.
In its default setting, Linux gives huge pages to processes that ask for them. We ask after loading, for all memory that
exists by then, since libraries allocate memory themselves; and for the KV cache before it is written.
"""

import ctypes
import logging
import math
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_HUGE = 1 << 21
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; MADV_COLLAPSE exists since Linux 6.1
_MAPS = Path("/proc/self/maps")


def zeros_on_demand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU that take memory, in huge pages where supported, only where they are written."""
    count = math.prod(shape) * dtype.itemsize
    raw = np.zeros(count, np.uint8)  # unlike torch.zeros, which writes them
    start, stop = -(-raw.ctypes.data // _HUGE) * _HUGE, (raw.ctypes.data + count) // _HUGE * _HUGE
    if sys.platform.startswith("linux") and start < stop:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_HUGEPAGE)
    return torch.from_numpy(raw).view(dtype).view(shape)


def use_huge_pages() -> int:
    """Move this process's memory to huge pages, where supported; returns the bytes moved. Never fails.

    What loading freed is given back first, where the C library can: it would be moved, too.
    """
    if not sys.platform.startswith("linux") or not _MAPS.exists():
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):  # glibc's alone
        libc.malloc_trim(0)
    moved = 0
    for start, stop in anonymous_ranges(_MAPS.read_text()):
        address, size = ctypes.c_void_p(start), ctypes.c_size_t(stop - start)
        if libc.madvise(address, size, _MADV_HUGEPAGE) == 0 and libc.madvise(address, size, _MADV_COLLAPSE) == 0:
            moved += stop - start
    logger.info("%.0f MB in huge pages", moved / 1e6)
    return moved


def anonymous_ranges(maps: str) -> list[tuple[int, int]]:
    """[start, stop) of the writable mappings in /proc/self/maps that belong to no file, cut to whole huge pages."""
    ranges = []
    for line in maps.splitlines():
        span, mode, *rest = line.split()
        name = rest[3] if len(rest) > 3 else ""
        if mode != "rw-p" or name not in ("", "[heap]"):
            continue
        begin, end = (int(address, 16) for address in span.split("-"))
        start, stop = -(-begin // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if start < stop:
            ranges.append((start, stop))
    return ranges
