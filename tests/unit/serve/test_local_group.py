"""A plain program's own group: outputs in order, an error instead of a hang when a rank dies, nothing left behind."""

import os
import signal
import time

import pytest
import ray

from medusa_dist.config import Config
from medusa_dist.engine.messages import Refusal, Submit
from medusa_dist.errors import GroupError, ModelError
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.serve.local_group import LocalGroup, run_ranks
from tests.support.fake_stack import expected

STACK = "tests.support.fake_stack"


def config(model: str = "fake:ok") -> Config:
    return Config.model_validate(
        {
            "model": model,
            "device": "cpu",
            "tensor_parallel_size": 2,
            "resources": {"cpus_per_rank": 0.5, "threads_per_rank": 1},
            "timeouts": {"step_s": 2.0, "heartbeat_s": 0.3},
        }
    )


def request(name: str, prompt=(1, 0, 5), max_tokens: int | None = 20) -> Request:
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=max_tokens), seed=0)


def await_room(cpus: float) -> None:
    """Ray's books follow the removal of a placement group with a delay."""
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0.0) < cpus:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)


def test_local_group_answers_refuses_and_frees_its_resources(ray_cluster):
    free = ray.available_resources()["CPU"]
    group = LocalGroup(config(), STACK)
    pids = group._group.pids
    group.send([Submit(request("a")), Submit(request("bad", prompt=(1,)))])
    ids, refused, finished = [], None, False
    while not finished:
        for message in group.receive():
            if isinstance(message, Refusal):
                refused = message
            else:
                ids += message.token_ids
                finished = message.finish_reason is not None
    assert ids == expected((1, 0, 5), 20)
    assert refused is not None and refused.request_id == "bad"
    group.close()
    group.close()
    assert ray.is_initialized()  # it was not the group's to end
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    await_room(free)


def test_lost_rank_is_a_group_error_not_a_hang(ray_cluster):
    group = LocalGroup(config(), STACK)
    pid = group._group.pids[1]
    group.send([Submit(request("a", (10, 0), None))])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(GroupError, match=f"rank 1: process {pid} died"):
        while True:
            group.receive()
    with pytest.raises(GroupError):
        group.send([Submit(request("b"))])
    group.close()


def test_failed_start_frees_its_resources(ray_cluster):
    free = ray.available_resources()["CPU"]
    with pytest.raises(ModelError):
        LocalGroup(config("fake:missing"), STACK)
    await_room(free)


JOB = "tests.support.fake_job"


def test_run_ranks_completes_a_job_and_frees_its_resources(ray_cluster):
    free = ray.available_resources()["CPU"]
    said = []
    run_ranks(config("job:works"), JOB, said.append)
    assert "at work" in said
    assert ray.is_initialized()
    await_room(free)


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("dies", GroupError, r"rank 1: process \d+ died"),
        ("refuses", ModelError, "this model is no good"),
        ("fails", GroupError, "rank 1 failed: ValueError: a bug"),
    ],
)
def test_failed_job_raises_its_cause_and_frees_its_resources(ray_cluster, how: str, kind: type, words: str):
    free = ray.available_resources()["CPU"]
    with pytest.raises(kind, match=words):
        run_ranks(config(f"job:{how}"), JOB, lambda _: None)
    await_room(free)
