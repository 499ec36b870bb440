"""Replicas come, go and are replaced inside a real Serve, with the stand-in engine, and no answer breaks.

A test holds its streams halfway (Gate) until what it waits for has happened: nothing here depends on how long a process
takes to start.
"""

import socket
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from ray import serve

from medusa_dist.app import DEPLOYMENT, assemble
from medusa_dist.config import Config
from tests.support.fake_stack import Gate, expected
from tests.support.served_fake import STACK, alive, body, folder, stream_ids, until  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

SCALING = {"max_replicas": 2, "upscale_delay_s": 1, "downscale_delay_s": 3, "interval_s": 0.5}
TARGET = 4  # sequences a replica
LENGTH, PACE_MS = 200, 20  # 2 s from the start to halfway, 2 s from there to the end
HANG_S = 180  # longer than any process takes to start, even on a machine that is not ours alone


def config(folder: str, **changes) -> Config:  # noqa: F811
    return Config.model_validate(
        {
            "model": f"fake:ok:{folder}",
            "served_model_name": "fake",
            "device": "cpu",
            "max_running": TARGET,
            "max_queued": 16,
            "resources": {"cpus_per_rank": 0.5, "front_cpus": 0.5, "threads_per_rank": 1},
            "autoscaling": SCALING,
            **changes,
        }
    )


@pytest.fixture
def url(ray_cluster, folder):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(assemble(config(folder), STACK), name="scaled", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.delete("scaled")
    serve.shutdown()


def states() -> dict[str, int]:
    """Replicas by state, those that are there."""
    found = serve.status().applications["scaled"].deployments[DEPLOYMENT].replica_states
    return {str(state): count for state, count in found.items() if count}


def answer(url: str, number: int) -> list[int]:
    """The tokens of a call that is answered in one piece."""
    reply = httpx.post(f"{url}/v1/completions", json=body(prompt(number), LENGTH), timeout=HANG_S)
    return [int(word[1:]) for word in reply.json()["choices"][0]["text"].split()]


def prompt(number: int) -> list[int]:
    return [PACE_MS, 0, number]


def whole(number: int) -> list[int]:
    """All tokens of the answer."""
    return expected(tuple(prompt(number)), LENGTH)


class Streams:
    """Open streams by number, each held halfway until it is let go."""

    def __init__(self, url: str, pool: ThreadPoolExecutor, gate: Gate):
        self._url, self._pool, self._gate = url, pool, gate
        self._reads: dict[int, Future[list[int]]] = {}

    def open(self, count: int) -> None:
        """So many more, and wait until they are halfway."""
        numbers = range(len(self._reads), len(self._reads) + count)
        for number in numbers:
            self._gate.hold(number)
            self._reads[number] = self._pool.submit(stream_ids, self._url, prompt(number), LENGTH, timeout_s=HANG_S)
        for number in numbers:
            until(lambda number=number: self._gate.holder(number) is not None, HANG_S)

    def by_rank(self) -> list[tuple[int, list[int]]]:
        """(pid of the rank, its open streams)"""
        found = defaultdict(list)
        for number in self._reads:
            found[self._gate.holder(number)].append(number)
        return list(found.items())

    def are_open(self, numbers: list[int]) -> bool:
        return not any(self._reads[number].done() for number in numbers)

    def let_go(self, numbers: list[int]) -> None:
        """Let them end, and check that nothing is missing."""
        for number in numbers:
            self._gate.release(number)
        for number in numbers:
            assert self._reads[number].result(HANG_S) == whole(number)


def test_burst_starts_a_second_replica_which_ends_after_it(url, folder):  # noqa: F811
    assert states() == {"RUNNING": 1}
    calls = range(2 * TARGET)
    with ThreadPoolExecutor(len(calls)) as pool, Gate(folder) as gate:
        for number in calls:
            gate.hold(number)
        began = time.monotonic()
        answers = [pool.submit(answer, url, number) for number in calls]
        until(lambda: sum(states().values()) == 2, HANG_S)
        decided = time.monotonic() - began
        until(lambda: states() == {"RUNNING": 2}, HANG_S)
        up = time.monotonic() - began
        assert not any(each.done() for each in answers)
        for number in calls:
            gate.release(number)
        assert [each.result(HANG_S) for each in answers] == [whole(number) for number in calls]
    ended = time.monotonic()
    until(lambda: states().get("STARTING", 0) + states().get("RUNNING", 0) == 1, 30)
    back = time.monotonic() - ended
    print(
        f"\nsecond replica wanted after {decided:.1f} s, up after {up:.1f} s; gone {back:.1f} s after the last answer"
    )
    assert decided < 8  # interval_s + upscale_delay_s, on a busy machine


def test_streams_on_a_replica_scaled_down_end_with_all_tokens(url, folder):  # noqa: F811
    with ThreadPoolExecutor(32) as pool, Gate(folder) as gate:
        streams = Streams(url, pool, gate)
        streams.open(TARGET + 1)
        until(lambda: states() == {"RUNNING": 2}, HANG_S)
        for _ in range(8):
            if sorted(len(numbers) >= 2 for _, numbers in streams.by_rank()) == [True, True]:
                break
            streams.open(2)  # to the shorter queue, as soon as Serve's proxy knows of it
        ranks = streams.by_rank()
        kept = [number for _, numbers in ranks for number in numbers[:2]]
        assert len(ranks) == 2 and len(kept) == TARGET and states() == {"RUNNING": 2}
        streams.let_go([number for _, numbers in ranks for number in numbers[2:]])
        until(lambda: states() == {"RUNNING": 1, "STOPPING": 1}, HANG_S)
        late = pool.submit(answer, url, 99)
        assert late.result(HANG_S) == whole(99)
        assert streams.are_open(kept) and all(alive(pid) for pid, _ in ranks)
        streams.let_go(kept)
    until(lambda: states() == {"RUNNING": 1}, HANG_S)
    assert sorted(alive(pid) for pid, _ in ranks) == [False, True]


def test_streams_on_a_replica_replaced_by_an_update_end_with_all_tokens(url, folder):  # noqa: F811
    with ThreadPoolExecutor(32) as pool, Gate(folder) as gate:
        streams = Streams(url, pool, gate)
        streams.open(TARGET)
        ((old, numbers),) = streams.by_rank()
        changed = assemble(config(folder, max_queued=17), STACK)
        update = pool.submit(serve.run, changed, name="scaled", route_prefix="/")
        until(lambda: states().get("STOPPING") == 1, HANG_S)
        late = pool.submit(answer, url, 99)  # waits for a replica, or finds one
        assert streams.are_open(numbers) and alive(old)
        streams.let_go(numbers)
        update.result(HANG_S)
        assert late.result(HANG_S) == whole(99)
    until(lambda: states() == {"RUNNING": 1}, HANG_S)
    assert not alive(old)
