"""No request is lost when a group fails: scripted groups for every case, and one with real processes."""

import asyncio
import os
import signal

import pytest
from ray.util import remove_placement_group

from medusa_dist.engine.loop import EngineLoop
from medusa_dist.engine.messages import Abort, OutputBatch, Submit
from medusa_dist.engine.stats import EngineStats
from medusa_dist.errors import EngineError, GroupError, ModelError, OverloadedError, RequestError
from medusa_dist.outputs import FinishReason
from medusa_dist.serve import inflight
from medusa_dist.serve import supervisor as module
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.placement import reserve
from medusa_dist.serve.supervisor import Supervisor
from tests.support.fake_groups import STACK, Silent, collect, config, request, until
from tests.support.fake_stack import FakeEngine, expected


class ScriptedGroup:
    """A group in this process: the stand-in engine on a thread, which the test ends when it likes."""

    def __init__(self, generation, fails=None):
        self.generation = generation
        self.fails = fails
        self.commands = []
        self.posts = []  # the same, one list per call
        self.killed = False
        self.muted = False
        self.facts, self.seconds = [{}], {}
        self.loop = EngineLoop(FakeEngine([]), 1.0, 5.0, generation)  # one may be ended before it starts

    def start(self, limit_s=None):
        if self.fails:
            raise self.fails
        self.end: asyncio.Future | None = None
        self.lives = [self]

    def future(self):
        """As an ObjectRef: a concurrent future of the engine's end."""
        from concurrent.futures import ThreadPoolExecutor

        self.end = ThreadPoolExecutor(1).submit(self.loop.run)
        return self.end

    async def post(self, commands):
        self.commands += commands
        self.posts.append(commands)
        self.loop.post(commands)

    async def batches(self):
        stream = self.loop.batches()
        while (batch := await asyncio.to_thread(next, stream, None)) is not None:
            if not self.muted:
                yield asyncio.sleep(0, batch)

    def fall(self):
        self.loop.close()

    def cause(self):
        return GroupError(f"generation {self.generation} fell")

    def kill(self):
        self.killed = True
        if not self.fails:
            self.loop.close()

    stop = kill


class Started:
    """A supervisor over scripted groups; groups[g] is generation g."""

    def __init__(self, config=None, fails=None):
        self.groups = []
        self.watch = Silent()
        self.fails = fails or {}
        self.supervisor = Supervisor(config or globals()["config"](), self.make, self.watch)

    def make(self, generation):
        self.groups.append(ScriptedGroup(generation, self.fails.get(generation)))
        return self.groups[-1]

    async def __aenter__(self):
        await self.supervisor.start()
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc):
        await self.supervisor.stop()
        assert self.groups[-1].killed or self.groups[-1].fails


async def test_three_group_failures_in_one_stream_change_no_token():
    async with Started() as run:
        seen = []
        reader = asyncio.create_task(collect(run.supervisor, request("a", (5, 0), max_tokens=100), seen))
        for fall in range(3):
            await until(lambda fall=fall: len(seen) > 10 * (fall + 1))
            run.groups[-1].fall()
            await until(lambda fall=fall: run.supervisor.generation > fall)
        assert await reader == expected((5, 0), 100)
        assert run.supervisor.generation == 3
        assert all(group.killed for group in run.groups[:3])
        resubmitted = run.groups[1].commands[0]
        assert isinstance(resubmitted, Submit) and len(resubmitted.output_ids) > 10
        assert run.supervisor.num_requests == 0


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_ended_requests_are_logged_with_ids_tokens_and_times(log_format, monkeypatch):
    lines = []
    monkeypatch.setattr(inflight.logger, "info", lambda text, **given: lines.append((text, given["extra"])))
    async with Started(config(log_format=log_format)) as run:
        assert len(await collect(run.supervisor, request("a", (5, 0), max_tokens=4))) == 4
        stream = run.supervisor.outputs(request("b", (5, 0), max_tokens=4000))
        await anext(stream)
        await stream.aclose()
    if log_format == "text":
        assert not lines
        return
    (text, done), (_, left) = lines
    assert text == "a request ended"
    assert (done["request"], done["reason"], done["prompt_tokens"], done["output_tokens"]) == ("a", "length", 2, 4)
    assert 0 <= done["first_token_s"] <= done["seconds"] < 60
    assert (left["request"], left["reason"]) == ("b", "cancelled")
    assert set(done) == {"request", "reason", "prompt_tokens", "output_tokens", "first_token_s", "seconds"}, "no text"


async def test_a_request_that_comes_during_a_restart_is_held_and_answered():
    async with Started(fails={1: GroupError("no room")}) as run:
        run.groups[0].fall()
        await until(lambda: len(run.groups) == 2)
        assert not run.supervisor.decodes
        assert await collect(run.supervisor, request("a")) == expected((2, 0, 5), 40)
        assert run.supervisor.generation == 2
        run.supervisor.check()


async def test_stats_are_those_of_the_groups_last_batch():
    async with Started() as run:
        reader = asyncio.create_task(collect(run.supervisor, request("a", (5, 0), max_tokens=60)))
        await until(lambda: run.supervisor.stats.num_running == 1)
        await reader
        await until(lambda: run.supervisor.stats.num_running == 0)


async def test_full_supervisor_refuses_requests_until_one_ends():
    async with Started() as run:
        readers = [asyncio.create_task(collect(run.supervisor, request(f"r{i}", (5, 0), 50))) for i in range(4)]
        await until(lambda: run.supervisor.num_requests == 4)
        with pytest.raises(OverloadedError, match="max_running"):
            await collect(run.supervisor, request("one more"))
        await asyncio.gather(*readers)
        assert await collect(run.supervisor, request("now")) == expected((2, 0, 5), 40)


async def test_closing_the_iterator_aborts_in_the_engine():
    async with Started() as run:
        outputs = run.supervisor.outputs(request("a", (5, 0), None))
        await anext(outputs)
        await outputs.aclose()
        await until(lambda: Abort("a") in run.groups[0].commands)
        await until(lambda: not run.groups[0].loop._engine.has_work)
        assert run.supervisor.num_requests == 0 and run.watch.ends == [None]


async def test_abort_ends_the_stream_with_its_reason():
    async with Started() as run:
        outputs = run.supervisor.outputs(request("a", (5, 0), None))
        await anext(outputs)
        run.supervisor.abort("a")
        run.supervisor.abort("a")
        run.supervisor.abort("unknown")
        rest = [output async for output in outputs]
        assert rest[-1].finish_reason == FinishReason.ABORT
        await until(lambda: Abort("a") in run.groups[0].commands)


async def test_request_refused_by_the_engine_raises_that_error():
    async with Started() as run:
        with pytest.raises(RequestError, match="too short"):
            await collect(run.supervisor, request("a", (1,)))
        assert await collect(run.supervisor, request("b")) == expected((2, 0, 5), 40)


async def test_request_that_fails_every_group_fails_alone(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    async with Started() as run:
        good = asyncio.create_task(collect(run.supervisor, request("good", (5, 0), 60)))
        with pytest.raises(EngineError, match="failed 3 times"):
            await collect(run.supervisor, request("poison", (5, 20), 60))
        assert await good == expected((5, 0), 60)
        assert run.supervisor.generation == 3


async def test_requests_and_health_check_fail_if_no_group_starts_in_restart_s(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", (0.1,))
    broken = {generation: ModelError("weights are gone") for generation in range(1, 99)}
    async with Started(config(timeouts={"restart_s": 0.5}), broken) as run:
        reader = asyncio.create_task(collect(run.supervisor, request("a", (5, 0), None)))
        await until(lambda: run.supervisor.num_requests == 1)
        run.groups[0].fall()
        with pytest.raises(GroupError, match="restart_s; last error: weights are gone"):
            await reader
        with pytest.raises(GroupError):
            run.supervisor.check()
        with pytest.raises(GroupError):
            await collect(run.supervisor, request("later"))


async def test_suspects_are_tried_one_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    async with Started(config(max_running=8)) as run:
        good = [asyncio.create_task(collect(run.supervisor, request(f"good{i}", (5, 0, i), 60))) for i in range(3)]
        with pytest.raises(EngineError):
            await collect(run.supervisor, request("poison", (5, 20), 60))
        for i, reader in enumerate(good):
            assert await reader == expected((5, 0, i), 60)
        # All four were in two groups that failed, so in the third and the fourth one each is submitted by itself.
        posts = [
            [[c.request.request_id for c in post if isinstance(c, Submit)] for post in g.posts] for g in run.groups
        ]
        assert posts[2:] == [[["poison"]], [["good0"], ["good1"], ["good2"]]]


async def test_silent_output_stream_counts_as_a_group_failure(monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 1.0)
    async with Started() as run:
        reader = asyncio.create_task(collect(run.supervisor, request("a", (20, 0), 100)))
        await until(lambda: run.supervisor.num_requests == 1)
        run.groups[0].muted = True
        assert await reader == expected((20, 0), 100)
        assert "did not respond" in run.watch.failures[0]


async def test_step_that_never_ends_counts_as_a_group_failure():
    async with Started() as run:
        stuck = OutputBatch(0, 0, (), age_s=99.0, stats=EngineStats())

        async def one_batch():
            yield asyncio.sleep(0, stuck)

        run.groups[0].batches = one_batch
        await until(lambda: run.supervisor.generation == 1)
        assert "in one step for 99 s" in run.watch.failures[0]


async def test_client_that_does_not_read_is_cut_off_and_others_continue():
    async with Started(config(timeouts={"stall_s": 0.5})) as run:
        outputs = run.supervisor.outputs(request("slow", (1, 0), None))
        first = await anext(outputs)
        await until(lambda: Abort("slow") in run.groups[0].commands)
        waiting = await anext(outputs)
        ids = [*first.token_ids, *waiting.token_ids]
        assert len(waiting.token_ids) > 1 and ids == expected((1, 0), len(ids))  # merged, none lost
        with pytest.raises(EngineError, match="read nothing"):
            await anext(outputs)
        assert await collect(run.supervisor, request("b")) == expected((2, 0, 5), 40)


async def test_failed_first_start_raises_its_cause_and_kills_the_group():
    run = Started(fails={0: ModelError("not there")})
    with pytest.raises(ModelError, match="not there"):
        await run.supervisor.start()
    assert run.groups[0].killed


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
async def test_a_lost_rank_of_a_real_group_costs_time_never_a_token(ray_cluster, how):
    wanted = config(world=2)
    placement = await asyncio.to_thread(reserve, wanted)
    groups = []

    def make(generation):
        groups.append(TPWorkerGroup(wanted, placement, generation, STACK))
        return groups[-1]

    supervisor = Supervisor(wanted, make, Silent())
    await supervisor.start()
    seen: list[int] = []
    reader = asyncio.create_task(collect(supervisor, request("a", (10, 0), 150), seen))
    await until(lambda: len(seen) > 20)
    pids = groups[0].pids
    os.kill(pids[1], how)
    try:
        assert await asyncio.wait_for(reader, 30) == expected((10, 0), 150)
        assert supervisor.generation == 1
    finally:
        pids += groups[-1].pids
        await supervisor.stop()
        remove_placement_group(placement)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
