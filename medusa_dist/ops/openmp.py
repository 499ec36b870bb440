"""Our own loops on torch's threads.

Owns the way into the OpenMP library that torch is linked to. A pool of our own on the same cores would not do: threads
of both wait by spinning, so each would take the other's cores.
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_shares(work: Callable[[int, int], None]) -> None:
    """work(share, shares) for all shares, one on each of torch's threads; returns when all have ended.

    work should release the GIL for most of its time. One of the exceptions raised is raised here. Where torch's threads
    cannot be had (no OpenMP of GNU's interface), the calling thread does it all.
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
            # Fewer threads may come than were asked for: whoever comes takes what is left.
            for share in numbers:
                work(share, shares)
        except BaseException as error:  # noqa: BLE001 - a callback has nobody to raise it to
            failed.append(error)

    parallel(_Task(task), None, shares, 0)
    if failed:
        raise failed[0]


@cache
def _openmp_parallel() -> Any | None:
    """void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags), GNU's entry for
    `#pragma omp parallel`; None: torch's OpenMP has none."""
    # A name is looked up in what a library depends on, too: this is the OpenMP that torch itself calls, even where
    # others are loaded beside it.
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = [_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
    return parallel
