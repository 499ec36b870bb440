"""One replica, two under load, one again: the policy inside a real Serve, with the stand-in engine."""

import asyncio
import socket
import time

import httpx
import pytest
from ray import serve

from medusa_dist.app import DEPLOYMENT, assemble
from medusa_dist.config import Config
from tests.serve.fake_stack import expected
from tests.serve.test_front import STACK, body, folder  # noqa: F401 - a fixture

SCALING = {"max_replicas": 2, "upscale_delay_s": 1, "downscale_delay_s": 3, "interval_s": 0.5}
LENGTH, PACE_MS = 700, 20  # 14 s a stream


@pytest.fixture
def url(ray_cluster, folder):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = Config(
        model=f"fake:ok:{folder}",
        served_model_name="fake",
        device="cpu",
        max_running=4,
        max_queued=16,
        resources={"cpus_per_rank": 0.5, "front_cpus": 0.5, "threads_per_rank": 1},
        autoscaling=SCALING,
    )
    serve.run(assemble(config, STACK), name="scaled", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.delete("scaled")
    serve.shutdown()


def num_replicas() -> tuple[int, int]:
    """(wanted and on their way or up, up)"""
    states = serve.status().applications["scaled"].deployments[DEPLOYMENT].replica_states
    return states.get("STARTING", 0) + states.get("RUNNING", 0), states.get("RUNNING", 0)


async def burst(url: str, prompts: list[list[int]], seen: list[tuple[float, tuple[int, int]]]) -> list[list[int]]:
    async with httpx.AsyncClient(timeout=120) as client:

        async def one(prompt: list[int]) -> list[int]:
            answer = await client.post(f"{url}/v1/completions", json=body(prompt, LENGTH))
            return [int(word[1:]) for word in answer.json()["choices"][0]["text"].split()]

        tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
        while not all(task.done() for task in tasks):
            seen.append((time.monotonic(), await asyncio.to_thread(num_replicas)))
            await asyncio.sleep(0.2)
        return [task.result() for task in tasks]


@pytest.mark.slow
def test_a_burst_brings_a_second_replica_and_its_end_takes_it_away_without_a_broken_answer(url):
    assert num_replicas() == (1, 1)
    seen: list[tuple[float, tuple[int, int]]] = []
    began = time.monotonic()
    prompts = [[PACE_MS, 0, i] for i in range(8)]
    answers = asyncio.run(burst(url, prompts, seen))
    ended = time.monotonic()
    assert answers == [expected(tuple(prompt), LENGTH) for prompt in prompts]
    decided = next(at for at, (wanted, _) in seen if wanted == 2) - began
    up = next(at for at, (_, running) in seen if running == 2) - began
    while num_replicas() != (1, 1):
        assert time.monotonic() - ended < 30, "the second replica did not end"
        time.sleep(0.1)
    back = time.monotonic() - ended
    print(
        f"\nsecond replica wanted after {decided:.1f} s, up after {up:.1f} s; gone {back:.1f} s after the last answer"
    )
    assert decided < 8  # interval_s + upscale_delay_s, on a busy machine
