"""Plans over sockets: ranks as threads, and as processes that are killed. tests/end_to_end/test_equivalence.py has
engines on it."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch._C._distributed_c10d import HashStore

from medusa_dist.engine.startup import control
from medusa_dist.engine.startup.control import SocketControl, connect_on_node
from medusa_dist.engine.startup.process_group import open_store
from medusa_dist.errors import GroupError

WORLD = 4
WAIT_S = 60  # ends a hang


class Agreement:
    """The minimum over ranks that are threads."""

    def __init__(self, world: int) -> None:
        self._values: list[int] = []
        self._barrier = threading.Barrier(world)

    def __call__(self, value: int) -> int:
        self._values.append(value)
        self._barrier.wait(WAIT_S)
        return min(self._values)


def connect(
    stack: ExitStack, store: object = None, timeout_s: float = WAIT_S, before: Callable[[int], object] = lambda _: None
) -> list[SocketControl | None]:
    """What each rank gets. before: called by each rank, with its number."""
    store, agree = store or HashStore(), Agreement(WORLD)

    def one(rank: int) -> SocketControl | None:
        before(rank)
        return connect_on_node(rank, WORLD, store, agree, timeout_s)

    with ThreadPoolExecutor(WORLD) as pool:
        found = list(pool.map(one, range(WORLD)))
    for each in found:
        if each is not None:
            stack.callback(each.close)
    return found


@contextmanager
def connected(timeout_s: float = WAIT_S) -> Iterator[tuple[SocketControl, list[SocketControl]]]:
    with ExitStack() as stack:
        first, *others = connect(stack, timeout_s=timeout_s)
        yield first, others


def test_all_ranks_receive_what_rank_0_sends_in_its_order() -> None:
    """Messages of one word up to several times what a socket buffers, and more of them than it buffers."""
    rng = np.random.default_rng(0)
    sizes = [1, 1024, 500_000, 2, *[1024] * 300]
    sent = [rng.integers(-(2**63), 2**63 - 1, size, dtype=np.int64) for size in sizes]

    def receive(rank: SocketControl) -> list[np.ndarray]:
        found = []
        for size in sizes:
            words = np.zeros(size, dtype=np.int64)
            rank.broadcast(words)
            found.append(words)
        return found

    with connected() as (first, others), ThreadPoolExecutor(WORLD) as pool:
        received = [pool.submit(receive, rank) for rank in others]
        for words in sent:
            first.broadcast(words)
        for each in received:
            assert all(map(np.array_equal, each.result(WAIT_S), sent))


def test_a_rank_may_come_after_the_others_and_read_after_all_was_sent() -> None:
    have_come = threading.Event()

    class Told(HashStore):
        """Says when rank 3, the last one before rank 2, has the name."""

        def get(self, key: str) -> bytes:
            found = super().get(key)
            have_come.set()
            return found

    with ExitStack() as stack:
        first, *others = connect(stack, Told(), before=lambda rank: rank == 2 and have_come.wait(WAIT_S))
        for number in range(3):
            first.broadcast(np.full(5, number))
        for rank in others:
            for number in range(3):
                words = np.zeros(5, dtype=np.int64)
                rank.broadcast(words)
                assert words.tolist() == [number] * 5


def other_node(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, nobody listens under the name."""
    reach = control._reach_rank_0
    elsewhere = SimpleNamespace(get=lambda _: b"no such name")
    monkeypatch.setattr(control, "_reach_rank_0", lambda store, own: reach(elsewhere if own == rank else store, own))


def other_user(_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the rank that connects."""
    monkeypatch.setattr(control, "_is_ours", lambda _: False)


def no_names(_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 cannot bind: a name longer than a socket's may be stands for it."""
    monkeypatch.setattr(control.secrets, "token_hex", lambda _: "x" * 200)


@pytest.mark.parametrize("why", [other_node, other_user, no_names])
def test_no_rank_uses_sockets_where_one_cannot(why: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    why(WORLD - 1, monkeypatch)
    with ExitStack() as stack:
        assert connect(stack) == [None] * WORLD


def test_other_users_are_turned_away_and_ranks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    with ExitStack() as stack:
        listener = stack.enter_context(control._listen(store, 3))
        stranger = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        stranger.connect(listener.getsockname())
        second, first = (stack.enter_context(control._reach_rank_0(store, rank)) for rank in (2, 1))
        judged = iter([False, True, True])  # in the order in which they came
        monkeypatch.setattr(control, "_is_ours", lambda _: next(judged))
        peers = [stack.enter_context(peer) for peer in control._accept(listener, 3, WAIT_S)]
        for peer, text in zip(peers, (b"to 1", b"to 2"), strict=True):
            peer.sendall(text)
        assert (first.recv(9), second.recv(9), stranger.recv(9)) == (b"to 1", b"to 2", b"")


def test_a_rank_that_is_lost_before_rank_0_accepts_it_is_named() -> None:
    store = HashStore()
    missing = pytest.raises(GroupError, match=r"ranks \[2\] did not connect")
    with control._listen(store, 3) as listener, control._reach_rank_0(store, 1), missing:
        control._accept(listener, 3, 0.05)


def test_a_rank_that_hangs_is_noticed_by_the_deadline() -> None:
    with connected(timeout_s=0.2) as (first, others):
        words, begin = np.zeros(100_000, dtype=np.int64), time.monotonic()
        with pytest.raises(TimeoutError):
            others[0].broadcast(words)  # rank 0 sends nothing
        with pytest.raises(TimeoutError):
            first.broadcast(words)  # nobody reads
    assert time.monotonic() - begin < WAIT_S / 3, "another limit than the deadline"


class Process:
    """One rank, and what it prints."""

    def __init__(self, rank: int, port: int) -> None:
        command = [sys.executable, "-m", "tests.support.control_rank", str(rank), "3", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, number: int) -> None:
        """Have rank 0 send a message."""
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()

    def line(self) -> str:
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)

    def end(self) -> None:
        self.kill()
        self._process.stdin.close()
        self._process.stdout.close()


@dataclass
class Node:
    """Three connected ranks, which have sent and received the message 5. name: of rank 0's socket."""

    ranks: list[Process]
    name: str


@pytest.fixture
def node() -> Iterator[Node]:
    store = open_store(3, "127.0.0.1", WAIT_S)
    found = [Process(rank, store.port) for rank in range(3)]
    try:
        assert [each.line() for each in found] == ["connected"] * 3
        found[0].send(5)
        assert [each.line() for each in found[1:]] == ["5"] * 2
        yield Node(found, store.get("control").decode())
    finally:
        for each in found:
            each.end()


def names() -> str:
    """Of all Unix sockets in this network namespace."""
    return Path("/proc/net/unix").read_text()


def test_a_killed_rank_0_is_noticed_at_once_and_leaves_no_name(node: Node) -> None:
    """The deadline is longer than any test may take."""
    assert node.name in names()
    node.ranks[0].kill()
    assert [each.line() for each in node.ranks[1:]] == ["ConnectionError"] * 2
    for each in node.ranks[1:]:
        each.kill()
    assert node.name not in names()


def test_a_killed_rank_is_noticed_by_the_next_message(node: Node) -> None:
    ranks = node.ranks
    ranks[2].kill()
    ranks[0].send(6)
    assert ranks[0].line() == "BrokenPipeError"
    assert ranks[1].line() == "6", "what was sent before is not lost"
    assert ranks[1].line() == "ConnectionError", "rank 0 has ended"
