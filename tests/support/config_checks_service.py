"""Keys that Ray Serve, the front and the group obey: each is changed, and the change is seen there.

Part of tests/end_to_end/test_config_keys.py, as tests/support/config_checks_engine.py is.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
import torch
from ray.exceptions import GetTimeoutError

from medusa_dist import llm_backend
from medusa_dist.api.http.traced_call import Traced
from medusa_dist.app import Medusa, api_of, build_app, files_of, logs, replicas
from medusa_dist.config import Config
from medusa_dist.engine.messages import Abort
from medusa_dist.engine.startup import process_group
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.stats import EngineStats
from medusa_dist.errors import (
    BodyTooLargeError,
    ConfigError,
    GroupError,
    OverloadedError,
    RequestError,
    StorageOffError,
)
from medusa_dist.llm import LLM
from medusa_dist.offline.conversations import chat_plan
from medusa_dist.serve import placement
from medusa_dist.serve import supervisor as supervisor_module
from medusa_dist.serve.autoscaling import METRIC, QueueDepthPolicy
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.placement import bundles
from medusa_dist.serve.rank import Rank, RankInfo
from medusa_dist.serve.replica import LLMReplica
from medusa_dist.serve.supervisor import Supervisor
from medusa_dist.storage.store import Store
from medusa_dist.text.chat_template import choose_template, render_chat
from medusa_dist.text.tools.chat_format import chat_format
from tests.support.config_checks_engine import World, request
from tests.support.fake_groups import Silent
from tests.support.tiny_tokenizers import byte_tokenizer

# --- what Serve and Ray are told ---


def log_format(world: World) -> None:
    """What a rank does with it: tests/unit/serve/test_rank.py."""
    for value, encoding in (("json", "JSON"), ("text", None)):
        assert logs(world.config("log_format", value)).get("logging_config", {}).get("encoding") == encoding


def served_model_name(world: World) -> None:
    for value, expected in (("mine", "mine"), (None, world.folder.name)):
        front = SimpleNamespace(_config=world.config("served_model_name", value))
        assert LLMReplica.name.fget(front) == expected


def chat_template(world: World) -> None:
    """The service and LLM pass the key on: tests/unit/test_llm.py."""
    for value in ("short", "long"):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = {"default": "d", "short": "short", "long": "long"}
        choose_template(tokenizer, world.config("chat_template", value).chat_template)
        assert render_chat(tokenizer, [{"role": "user", "content": "x"}]) == value


def tool_format(world: World) -> None:
    tokenizer = byte_tokenizer()
    for value, name in (("auto", None), ("none", None), ("hermes", "hermes"), ("pythonic", "pythonic")):
        form = chat_format(tokenizer, world.config("tool_format", value).tool_format, "none").form
        assert (None if form is None else form.name) == name


def reasoning_format(world: World) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content.split('</think>')[-1] }}"
    for value, close in (("auto", "</think>"), ("none", None), ("mistral", "[/THINK]")):
        marks = chat_format(tokenizer, "none", world.config("reasoning_format", value).reasoning_format).marks
        assert (None if marks is None else marks.close) == close


def sanitize_control_tokens(world: World) -> None:
    says = [{"role": "user", "content": "<eos>"}]
    for value, num in ((True, 1), (False, 2)):
        config = world.config("sanitize_control_tokens", value)
        assert LLMReplica.sanitize_control_tokens.fget(SimpleNamespace(_config=config)) is value
        tokenizer = byte_tokenizer()
        llm = SimpleNamespace(config=config, tokenizer=tokenizer)
        _, ids = LLM._encode(llm, says, chat_plan(None, None, None, chat_format(tokenizer, "none", "none")))
        assert ids.count(tokenizer.eos_token_id) == num


def tensor_parallel_size(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(llm_backend, "LocalGroup", lambda config: f"{config.tensor_parallel_size} ranks")
    for value in (1, 2, 3):
        config = world.config("tensor_parallel_size", value)
        assert len(bundles(config, True)) == value
        made = llm_backend.start_backend(config)
        assert isinstance(made, llm_backend.LocalBackend) if value == 1 else made == f"{value} ranks"


def max_queued(world: World) -> None:
    for value in (0, 3):
        config = world.config("max_queued", value, max_running=2)
        supervisor = Supervisor(config, MagicMock(), Silent())
        for i in range(2 + value):
            supervisor._admit(request(str(i)))
        with pytest.raises(OverloadedError, match=f"{2 + value} requests"):
            supervisor._admit(request("one more"))


def scaled(world: World, key: str, value: object, **more: object) -> Any:
    """Options of the deployment."""
    return replicas(world.config(f"autoscaling.{key}", value, autoscaling={"max_replicas": 9, **more}))


def option(name: str, key: str, *values: float) -> Callable[[World], None]:
    """A key that becomes one of Serve's own options."""

    def check(world: World) -> None:
        for value in values:
            assert getattr(scaled(world, key, value)["autoscaling_config"], name) == value

    return check


def target_sequences(world: World) -> None:
    """20 sequences in one replica."""
    now = time.time()
    reports = {METRIC: {"r": [SimpleNamespace(timestamp=now, value=20.0)]}}
    load = SimpleNamespace(
        raw_metrics=reports, running_replicas=["r"], current_time=now, total_queued_requests=0, target_num_replicas=1
    )
    for value, wanted in ((5.0, 4), (10.0, 2), (None, 5)):  # None: max_running, which is 4
        options = scaled(world, "target_sequences", value)["autoscaling_config"].policy.policy_kwargs
        if value is None:
            config = world.config("autoscaling.target_sequences", None, autoscaling={"max_replicas": 9}, max_running=4)
            options = replicas(config)["autoscaling_config"].policy.policy_kwargs
        assert QueueDepthPolicy(**options)(load)[0] == wanted


def interval_s(world: World) -> None:
    for value in (0.5, 7.0):
        made = scaled(world, "interval_s", value)["autoscaling_config"]
        assert (made.metrics_interval_s, made.look_back_period_s) == (value, 5 * value)
        assert made.policy.policy_kwargs["stale_s"] == 10.0 + 3 * value


def cpus_per_rank(world: World) -> None:
    for value in (0.5, 3.0):
        config = world.config("resources.cpus_per_rank", value, tensor_parallel_size=2)
        assert [bundle["CPU"] for bundle in bundles(config, False)] == [value, value]


def front_cpus(world: World) -> None:
    for value in (0.25, 2.0):
        config = world.config("resources.front_cpus", value, tensor_parallel_size=2)
        assert [bundle["CPU"] for bundle in bundles(config, True)] == [1.0 + value, 1.0]
        assert replicas(config)["ray_actor_options"]["num_cpus"] == value


def threads_per_rank(world: World, patch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        patch.setenv(name, "9")  # and set back afterwards
    try:
        for value in (2, 1):
            config = world.config("resources.threads_per_rank", value)
            EngineRank(config, world.folder)
            assert torch.get_num_threads() == value
            Rank(config, 0, 0, "tests.support.fake_stack")
            assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == str(value)
    finally:
        torch.set_num_threads(before)


# --- deadlines ---


def start_group(config: Config, patch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a group of stand-in ranks waits for at its start, and for how long."""
    waits: dict[str, float] = {}
    place = RankInfo(1, "node", "host", "127.0.0.1", None, {})
    answers = {"be placed": [place] * 2, "open the rendezvous": [1], "load and warm up": [{"seconds": {}}] * 2}

    def gather(what: str, _refs: list[Any], timeout_s: float) -> list[Any]:
        waits[what] = timeout_s
        return answers[what]

    group = TPWorkerGroup(config, MagicMock())
    group._ranks = [MagicMock(), MagicMock()]
    patch.setattr(group, "_create", lambda: None)
    patch.setattr(group, "_gather", gather)
    group.start()
    return waits


def placement_s(world: World, patch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(_ref: object, timeout: float) -> None:
        asked.append(timeout)
        raise GetTimeoutError

    patch.setattr(placement.ray, "get", get)
    for name in ("placement_group", "remove_placement_group", "explain_room"):
        patch.setattr(placement, name, MagicMock())
    for value in (3.0, 40.0):
        config = world.config("timeouts.placement_s", value)
        with pytest.raises(GroupError, match=rf"within {value:g} s \(timeouts\.placement_s\)"):
            placement.reserve(config)
        waits = start_group(config, patch)
        assert (waits["be placed"], waits["open the rendezvous"]) == (value, value)
    assert asked == [3.0, 40.0]


def groups_of(config: Config, patch: pytest.MonkeyPatch) -> list[timedelta]:
    """Deadlines of the data group, of plans over sockets, and of plans over gloo, as those are told them."""
    asked: list[timedelta] = []
    patch.setattr(process_group, "connect_on_node", lambda *args: asked.append(timedelta(seconds=args[-1])))
    patch.setattr(process_group.dist, "init_process_group", lambda *_, timeout, **__: asked.append(timeout))
    patch.setattr(process_group.dist, "new_group", lambda *_, timeout, **__: asked.append(timeout))
    patch.setattr(process_group, "PrefixStore", MagicMock())
    process_group.join_group(config, torch.device("cpu"), 0, MagicMock(), 0)
    return asked


def load_s(world: World, patch: pytest.MonkeyPatch) -> None:
    for value in (9.0, 100.0):
        config = world.config("timeouts.load_s", value, tensor_parallel_size=2)
        assert start_group(config, patch)["load and warm up"] == value
        assert groups_of(config, patch)[0] == timedelta(seconds=value)


def step_s(world: World, patch: pytest.MonkeyPatch) -> None:
    """The deadline of the group that plans travel by; and rank 0 may not be in one step for longer."""
    for value in (30.0, 90.0):
        config = world.config("timeouts.step_s", value, tensor_parallel_size=2)
        assert groups_of(config, patch)[1:] == [timedelta(seconds=value)] * 2
        supervisor = Supervisor(config, MagicMock(), Silent())
        supervisor._generation = 0
        for age_s, is_dead in ((value + 4.0, False), (value + 6.0, True)):
            assert has_failed(supervisor, age_s) is is_dead


def has_failed(supervisor: Supervisor, age_s: float) -> bool:
    """Whether a batch of that age ends the generation."""

    async def batches() -> Any:
        batch = SimpleNamespace(generation=0, number=0, age_s=age_s, messages=(), stats=EngineStats())
        yield asyncio.sleep(0, batch)

    try:
        asyncio.run(supervisor._read(SimpleNamespace(batches=batches)))
    except GroupError as error:
        assert "timeouts.step_s" in str(error)
        return True
    return False


def heartbeat_s(world: World, patch: pytest.MonkeyPatch) -> None:
    """The loop that a rank makes, around a stand-in engine without work, with a clock of ours."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        patch.setenv(name, "1")  # and set back afterwards
    for value in (2.0, 20.0):
        keys = {"model": "fake:ok", "resources": {"threads_per_rank": 1}}
        rank = Rank(world.config("timeouts.heartbeat_s", value, **keys), 0, 0, "tests.support.fake_stack")
        rank.start("127.0.0.1", 0)
        loop, beats = rank._loop, []
        assert loop is not None
        patch.setattr(loop._engine, "heartbeat", lambda seen=beats: seen.append(1), raising=False)
        for after, expected in ((0.9 * value, 0), (1.1 * value, 1)):
            patch.setattr(loop, "_clock", lambda later=loop._beat_at + after: later)
            loop.post([Abort("nobody")])  # so that the turn does not wait for a command
            loop._turn()
            assert len(beats) == expected


def stall_s(world: World, patch: pytest.MonkeyPatch) -> None:
    """A client reads nothing while output waits: it is cut off after that long."""
    patch.setattr(supervisor_module, "PATROL_S", 0.0)
    for value in (5.0, 50.0):
        for waited, is_cut in ((0.9 * value, False), (1.1 * value, True)):
            supervisor = Supervisor(world.config("timeouts.stall_s", value), MagicMock(), Silent())
            pending = supervisor._admit(request("a"))
            pending.waiting_since = time.monotonic() - waited

            async def patrol(one: Supervisor = supervisor) -> None:
                task = asyncio.create_task(one._patrol())
                for _ in range(5):
                    await asyncio.sleep(0)
                task.cancel()

            asyncio.run(patrol())
            assert pending.is_over is is_cut


def restart_s(world: World, patch: pytest.MonkeyPatch) -> None:
    """What is left of it is the limit of the next group's start."""
    for value in (30.0, 500.0):
        limits: list[float] = []
        group = SimpleNamespace(start=limits.append, kill=lambda: None, seconds={})
        supervisor = Supervisor(world.config("timeouts.restart_s", value), lambda _, g=group: g, Silent())
        supervisor._group = group
        asyncio.run(supervisor._restart(GroupError("fell")))
        assert len(limits) == 1 and value - 5.0 < limits[0] <= value


# --- HTTP ---


def max_body_bytes(world: World) -> None:
    """A batch line of a replica, which has the routes of HTTP."""
    for value in (2000, 3000):
        reply = asyncio.run(
            replica_of(world.config("http.max_body_bytes", value))._inside.post("/tokenize", "x" * 2500)
        )
        assert reply.status == (413 if value < 2500 else 400)


def cors_origins(world: World) -> None:
    for value, is_allowed in (((), False), (("http://localhost:3000",), True)):
        client = replica_of(world.config("http.cors_origins", value))._inside._client
        reply = asyncio.run(client.get("/live", headers={"origin": "http://localhost:3000"}))
        assert ("access-control-allow-origin" in reply.headers) is is_allowed


def page(world: World) -> None:
    """Of callers on this machine and elsewhere."""
    for value, statuses in ((True, (200, 200)), (False, (404, 404)), (None, (200, 404))):
        app = api_of(world.config("page", value, files={"store": "off"}), None)
        for caller, status in zip(("127.0.0.1", "192.0.2.7"), statuses, strict=True):
            transport = httpx.ASGITransport(app, client=(caller, 50000))
            client = httpx.AsyncClient(transport=transport, base_url="http://test")
            assert asyncio.run(client.get("/")).status_code == status


def tracing(world: World, patch: pytest.MonkeyPatch) -> None:
    """The spans: tests/unit/tracing/ and tests/unit/api/http/test_traced_call.py."""
    patch.setenv("OTEL_TRACES_EXPORTER", "none")
    for value in (True, False):
        config = world.config("tracing", value, files={"store": "off"})
        assert any(one.cls is Traced for one in api_of(config, None).user_middleware) is value
        assert (
            any(one.cls is Traced for one in replica_of(config)._inside._client._transport.app.user_middleware) is value
        )
    patch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    with pytest.raises(ConfigError, match="tracing: no installed package has the exporter 'pigeon'"):
        build_app(world.config("tracing", True, files={"store": "off"}))


def files_store(world: World) -> None:
    found = {value: files_of(world.config("files.store", value)) for value in ("off", str(world.folder / "kept"))}
    kept, off = found.pop(str(world.folder / "kept")), found.pop("off")
    assert isinstance(off, StorageOffError) and isinstance(kept, Store)
    assert str(kept.files.folder).startswith(str(world.folder / "kept"))


def _store(world: World, key: str, value: int) -> Store:
    others = {"store": f"memory://{uuid.uuid4().hex}"}
    if key == "files.max_total_bytes":
        others["max_file_bytes"] = 1024
    found = files_of(world.config(key, value, files=others))
    assert isinstance(found, Store)
    return found


def max_file_bytes(world: World) -> None:
    for value, fits in ((2000, False), (4000, True)):
        store = _store(world, "files.max_file_bytes", value)
        with nullcontext() if fits else pytest.raises(BodyTooLargeError):
            store.files.upload("t", "a", [b"x" * 3000], 3000)


def max_total_bytes(world: World) -> None:
    for value, fits in ((1024, False), (4000, True)):
        store = _store(world, "files.max_total_bytes", value)
        with nullcontext() if fits else pytest.raises(RequestError):
            for _ in range(2):
                store.files.upload("t", "a", [b"x" * 1000], 1000)


def max_batch_lines(world: World) -> None:
    for value in (3, 5):
        assert _store(world, "files.max_batch_lines", value).batches.max_lines == value


def replica_of(config: Config) -> Medusa:
    replica = Medusa.__new__(Medusa)
    replica._config = config
    return replica


CHECKS: dict[str, Callable[..., None]] = {
    "http.max_body_bytes": max_body_bytes,
    "http.cors_origins": cors_origins,
    "page": page,
    "tracing": tracing,
    "files.store": files_store,
    "files.max_file_bytes": max_file_bytes,
    "files.max_total_bytes": max_total_bytes,
    "files.max_batch_lines": max_batch_lines,
    "log_format": log_format,
    "served_model_name": served_model_name,
    "chat_template": chat_template,
    "sanitize_control_tokens": sanitize_control_tokens,
    "tool_format": tool_format,
    "reasoning_format": reasoning_format,
    "tensor_parallel_size": tensor_parallel_size,
    "max_queued": max_queued,
    "autoscaling.min_replicas": option("min_replicas", "min_replicas", 1, 3),
    "autoscaling.max_replicas": option("max_replicas", "max_replicas", 2, 5),
    "autoscaling.target_sequences": target_sequences,
    "autoscaling.upscale_delay_s": option("upscale_delay_s", "upscale_delay_s", 1.5, 20.0),
    "autoscaling.downscale_delay_s": option("downscale_delay_s", "downscale_delay_s", 15.0, 400.0),
    "autoscaling.interval_s": interval_s,
    "resources.cpus_per_rank": cpus_per_rank,
    "resources.front_cpus": front_cpus,
    "resources.threads_per_rank": threads_per_rank,
    "timeouts.placement_s": placement_s,
    "timeouts.load_s": load_s,
    "timeouts.step_s": step_s,
    "timeouts.heartbeat_s": heartbeat_s,
    "timeouts.stall_s": stall_s,
    "timeouts.restart_s": restart_s,
}
