"""Work on torch's threads: every share once, errors come out, and the threads are torch's own."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from medusa_dist.ops.cpu.openmp import run_shares


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_share_is_done_once(threads: int) -> None:
    for _ in range(20):
        done: list[tuple[int, int]] = []
        run_shares(lambda *share, done=done: done.append(share))
        assert sorted(done) == [(share, len(done)) for share in range(len(done))] and len(done) in (1, threads)


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch here runs no OpenMP threads")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP may lack GNU's entry")
def test_shares_run_concurrently() -> None:
    """Each waits for the other: one thread after the other would never end, but for the time limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = threading.Barrier(2)
        run_shares(lambda *_: both.wait(timeout=60))
        assert not both.broken
    finally:
        torch.set_num_threads(before)


def test_error_in_any_share_is_raised(threads: int) -> None:
    def work(share: int, shares: int) -> None:
        if share == shares - 1:
            raise ValueError(f"share {share}")

    with pytest.raises(ValueError, match=f"share {threads - 1}|share 0"):
        run_shares(work)
    run_shares(lambda *_: None)


def test_repeated_runs_reuse_the_same_threads(threads: int) -> None:
    """The same few threads come each time, also between torch's own products."""
    seen = set()
    for _ in range(10):
        torch.mm(torch.ones(512, 512), torch.ones(512, 512))
        run_shares(lambda *_: seen.add(threading.get_native_id()))
    assert 1 <= len(seen) <= threads


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="lists a process's libraries as Linux does")
def test_run_shares_loads_no_library_beyond_torchs() -> None:
    """A second OpenMP would have threads of its own."""
    code = """
from pathlib import Path
import torch
from medusa_dist.ops.cpu.openmp import run_shares
def libraries():
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
torch.set_num_threads(2)
torch.mm(torch.ones(512, 512), torch.ones(512, 512))
before = libraries()
run_shares(lambda *_: None)
assert libraries() == before, libraries() - before
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
