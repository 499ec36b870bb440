"""A real group of processes with a stand-in engine: start, stream, causes of a failure, deadlines, no process left."""

import contextlib
import dataclasses
import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray
from ray.util import remove_placement_group

from medusa_dist.config import Config
from medusa_dist.engine.messages import Abort, Submit
from medusa_dist.errors import GroupError, ModelError
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.serve import group as module
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.placement import reserve
from tests.support.fake_stack import expected

STACK = "tests.support.fake_stack"


def config(model: str = "fake:ok", world: int = 2, **timeouts: float) -> Config:
    return Config.model_validate(
        {
            "model": model,
            "device": "cpu",
            "tensor_parallel_size": world,
            "resources": {"cpus_per_rank": 0.5, "threads_per_rank": 1},
            "timeouts": {"step_s": 2.0, "heartbeat_s": 0.3, "placement_s": 60.0, "load_s": 60.0, **timeouts},
        }
    )


@contextlib.contextmanager
def group_of(config: Config):
    """A group that is not started yet; afterwards no process of it may be left."""
    placement = reserve(config)
    group = TPWorkerGroup(config, placement, generation=1, stack=STACK)
    try:
        yield group
    finally:
        pids = group.pids
        group.kill()
        remove_placement_group(placement)
        assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def request(name: str, prompt: tuple[int, ...] = (1, 0, 5), max_tokens: int | None = 20) -> Request:
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=max_tokens), seed=0)


def read(stream, names: set[str]) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {name: [] for name in names}
    left = set(names)
    for ref in stream:
        for message in ray.get(ref).messages:
            assert isinstance(message, Output)
            ids[message.request_id] += message.token_ids
            if message.finish_reason:
                left.discard(message.request_id)
        if not left:
            return ids
    raise AssertionError(f"the stream ended before {left}")


def test_two_ranks_send_all_outputs_over_one_stream_and_leave_no_process(ray_cluster):
    with group_of(config()) as group:
        group.start()
        assert len(set(group.pids)) == 2
        prompts = {f"r{i}": (1, 0, i) for i in range(8)}
        ray.get(group.post([Submit(request(name, prompt)) for name, prompt in prompts.items()]))
        ids = read(group.batches(), set(prompts))
        assert ids == {name: expected(prompt, 20) for name, prompt in prompts.items()}
        ray.get(group.post([Submit(request("long", max_tokens=None)), Abort("long")]))
        pids = group.pids
        group.stop()
        assert not [pid for pid in pids if alive(pid)]


def test_a_killed_follower_is_named_and_ends_the_group_at_once(ray_cluster):
    with group_of(config()) as group:
        group.start()
        ray.get(group.post([Submit(request("a", (20, 0), max_tokens=None))]))
        os.kill(group.pids[1], signal.SIGKILL)
        start = time.monotonic()
        done, _ = ray.wait(group.lives, timeout=10)
        assert done and time.monotonic() - start < 3.0
        assert str(group.cause()).startswith(f"rank 1: process {group.pids[1]} died")


def test_stopped_follower_fails_the_group_at_the_step_deadline(ray_cluster):
    with group_of(config()) as group:
        group.start()
        os.kill(group.pids[1], signal.SIGSTOP)
        start = time.monotonic()
        done, _ = ray.wait(group.lives, timeout=10)
        assert done and time.monotonic() - start < 5.0
        assert "rank 0 failed: TimeoutError" in str(group.cause(settle_s=0.2))


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ("fake:missing", ModelError, "fake:missing"),
        ("fake:dies", GroupError, "rank . could not load and warm up: process .* died"),
    ],
)
def test_a_failed_start_says_which_rank_and_why(ray_cluster, model, error, text):
    with group_of(config(model)) as group, pytest.raises(error, match=text):
        group.start()


def test_differing_package_versions_on_another_node_are_refused(ray_cluster, monkeypatch):
    with group_of(config("fake:hangs")) as group:
        gather = group._gather

        def skewed(what, refs, timeout_s):
            places = gather(what, refs, timeout_s)
            return [places[0], dataclasses.replace(places[1], versions=places[1].versions | {"ray": "1.0"})]

        monkeypatch.setattr(group, "_gather", skewed)
        with pytest.raises(GroupError, match=r"ray is 1\.0 for rank 1 on .*, but 2.* for rank 0"):
            group.start()


def test_hanging_start_ends_at_its_deadline_and_names_the_phase(ray_cluster):
    text = r"rank 0 did not load and warm up within 1 s \(rank 0: load\)"
    with group_of(config("fake:hangs", world=1, load_s=1.0)) as group, pytest.raises(GroupError, match=text):
        group.start()


def test_missing_resources_error_names_requested_and_free_ones(ray_cluster):
    big = Config.model_validate(
        {"model": "m", "device": "cpu", "resources": {"cpus_per_rank": 99}, "timeouts": {"placement_s": 1.0}}
    )
    with pytest.raises(GroupError, match=r"requested on one node: 99 CPU; nodes: .* free of 8 CPU"):
        reserve(big)


def test_a_group_that_is_ended_while_it_starts_leaves_no_rank(ray_cluster, monkeypatch):
    """As when Serve ends a replica in the middle of a restart: the start goes on in its thread."""

    def ranks() -> list[str]:
        return [name for name in ray.util.list_named_actors() if name.startswith("medusa:ended:")]

    with group_of(config().model_copy(update={"served_model_name": "ended"})) as group:
        make = module.RankActor.options

        def options(**fields):
            if ":rank1:" in fields["name"]:
                group.kill()  # the other thread, after the first rank and before the second
            return make(**fields)

        monkeypatch.setattr(module, "RankActor", SimpleNamespace(options=options))
        with pytest.raises(GroupError, match="stopped while it was starting"):
            group.start()
        deadline = time.monotonic() + 60
        while ranks():
            assert time.monotonic() < deadline, ranks()
            time.sleep(0.05)
