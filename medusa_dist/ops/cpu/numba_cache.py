"""Compilation cache of our numba loops: on disk, compiled by one process at a time.

Owns the cache and its lock. Not here: the loops (ops/attention/paged_cpu_kernel.py, ops/noise_kernel.py).
numba instead of a C extension, since it needs no compiler on the user's machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

_LOCK_S = 300.0  # after that, compile without the lock


def kept_on_disk(function: Any) -> Any:
    """A numba function that caches its compiled code next to its source file or in the user's cache folder.

    If neither is writable, each process compiles for itself.
    """
    with suppress(RuntimeError):  # "no locator available": no such folder
        function.enable_caching()
        _drop_unreadable(function)
    return function


def _drop_unreadable(function: Any) -> None:
    """Drop cached code of another version of this package, whose types had other names or modules.

    numba compares the source file only after it has unpickled the index, which fails on a type that no longer exists.
    """
    cache = function._cache
    try:
        cache._cache_file._load_index()
    except (AttributeError, ImportError):
        with suppress(OSError):  # not writable: each process compiles for itself
            cache.flush()


@contextmanager
def first_calls(function: Any) -> Iterator[None]:
    """Wraps the first calls of functions in function's file, which compile them or load them from disk.

    One process at a time: numba numbers its cache files, and two processes at once, perhaps on two kinds of CPU with a
    shared file system, may give the same number to different code. A file system without locks or space is not an
    error.
    """
    lock = None
    if (folder := function.stats.cache_path) is not None:
        with suppress(OSError):  # also if a process holds it too long
            lock = FileLock(Path(folder, f".{function.py_func.__module__}.lock"), timeout=_LOCK_S, mode=0o666)
            lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
