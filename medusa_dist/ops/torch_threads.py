"""Our own loops on torch's threads.

Owns the way into the OpenMP library that torch has loaded. A pool of our own on the same cores would not do: threads of
both wait by spinning, so each would take the other's cores.
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_shares(work: Callable[[int, int], None]) -> None:
    """work(share, shares) for all shares, one on each of torch's threads; returns when all have ended.

    work should release the GIL for most of its time. One of the exceptions raised is raised here. Where torch's threads
    cannot be had (no OpenMP of GNU's interface), the calling thread does it all.
    """
    shares = torch.get_num_threads()
    library = _openmp() if shares > 1 else None
    if library is None:
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

    library.GOMP_parallel(_Task(task), None, shares, 0)
    if failed:
        raise failed[0]


@cache
def _openmp() -> ctypes.CDLL | None:
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        for path in sorted(folder.glob("lib*omp*")):
            library = ctypes.CDLL(str(path))
            if hasattr(library, "GOMP_parallel"):
                library.GOMP_parallel.argtypes = [_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
                library.GOMP_parallel.restype = None
                return library
    return None
