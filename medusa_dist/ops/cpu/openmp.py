"""Runs our compiled loops on torch's OpenMP threads.

Owns access to the OpenMP library that torch is linked to. Not here: the loops (ops/attention/paged_cpu_kernel.py).
A thread pool of our own on the same cores would not work: idle threads of both pools spin, so each would take the
other's cores.
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

_WORTH_SHARING = 50_000  # numbers; below it, waking threads costs more than it saves
_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_shares(work: Callable[[int, int], None]) -> None:
    """Call work(share, shares) for all shares, one on each of torch's threads; returns when all are done.

    work should release the GIL most of the time. One of the exceptions raised in it is re-raised here. If torch's
    threads are not accessible (no OpenMP with GNU's interface), the calling thread does all the work.
    """
    shares = torch.get_num_threads()
    parallel = _openmp_parallel() if shares > 1 else None
    if parallel is None:
        work(0, 1)
        return
    failed: list[BaseException] = []
    numbers: Iterator[int] = iter(range(shares))

    def task(_: int | None) -> None:
        try:
            # Fewer threads than requested may start: each takes shares until none are left.
            for share in numbers:
                work(share, shares)
        except BaseException as error:  # noqa: BLE001 - a ctypes callback cannot propagate exceptions
            failed.append(error)

    parallel(_Task(task), None, shares, 0)
    if failed:
        raise failed[0]


def share_rows(work: Callable[[int, int], None], rows: int, width: int) -> None:
    """Call work(begin, end) so that all rows, of `width` numbers each, are done; on torch's threads if that pays."""
    if rows * width < _WORTH_SHARING:
        work(0, rows)
    else:
        run_shares(lambda share, shares: work(share * rows // shares, (share + 1) * rows // shares))


@cache
def _openmp_parallel() -> Any | None:
    """void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags), GNU's entry point for
    `#pragma omp parallel`; None if torch's OpenMP lacks it."""
    # Symbol lookup includes a library's dependencies: this is the OpenMP that torch itself calls, even if others are
    # loaded too.
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = [_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
    return parallel
