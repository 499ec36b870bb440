"""The five-part step: its counts, its phases, and the doors around it."""

import time
from pathlib import Path

import pytest

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.plan import Op
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.errors import RequestError
from tests.support.tiny_engine import Setting, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> EngineRank:
    folder: Path = tmp_path_factory.mktemp("gemma2")
    save_model("gemma2", folder)
    return EngineRank(tiny_config(folder), folder)


@pytest.fixture
def engine(rank: EngineRank) -> Engine:
    return engine_over(rank, Setting(nodes=7))


def test_stats_count_sequences_tokens_drafts_and_phases(engine: Engine) -> None:
    assert not engine.has_work
    engine.submit(request("a", [3, 4, 5], temperature=0.0, max_tokens=20, ignore_eos=True))
    engine.submit(request("b", [6], temperature=0.0, max_tokens=3, ignore_eos=True))
    assert engine.has_work and engine.stats().num_waiting == 2 and engine.stats().num_prompt_tokens == 4
    outputs = engine.step()
    middle = engine.stats()
    assert (middle.num_running, middle.num_waiting, middle.num_steps, middle.num_tokens) == (2, 0, 1, 2)
    assert middle.kv_used_fraction == pytest.approx(2 / 127)
    seconds, booked = 0.0, sum(middle.phase_seconds.values())
    while engine.has_work:
        begin = time.perf_counter()
        outputs += engine.step()
        seconds += time.perf_counter() - begin
    end = engine.stats()
    assert sum(end.phase_seconds.values()) - booked == pytest.approx(seconds, rel=0.2), "the phases are the step"
    assert end.num_running == 0 and end.kv_used_fraction == 0.0 and end.num_tokens == 23
    assert end.num_drafted == sum(o.stats.num_drafted for o in outputs) > 0
    assert sum(end.accepted_per_head) == sum(head > 0 for o in outputs for head in o.heads) > 0
    verify = ["broadcast", "prepare", "copy", "forward", "sample"]
    assert list(end.phase_seconds) == ["schedule", *verify, "accept", "emit", "draft"]
    assert all(seconds > 0 for seconds in end.phase_seconds.values())


def test_first_output_of_a_request_has_the_time_since_its_first_step(rank: EngineRank) -> None:
    """Which is not its time in the queue, and for a prompt in chunks the time of all."""
    engine = engine_over(rank, Setting(max_running=1, max_batched_tokens=16))
    for name in "ab":
        engine.submit(request(name, [3] * 40, max_tokens=20, ignore_eos=True))
    begin, outputs, ends = time.perf_counter(), [], []
    while engine.has_work:
        new = engine.step()
        outputs += new
        ends += [time.perf_counter()] * len(new)
    for name, start in (("a", begin), ("b", ends[[o.request_id for o in outputs].index("b") - 1])):
        mine = [(output, end) for output, end in zip(outputs, ends, strict=True) if output.request_id == name]
        (first, end), *later = mine
        assert first.prefill_s is not None and 0.0 < first.prefill_s < end - start
        assert first.prefill_s > (end - start) / 3, "three steps, and not the last alone"
        assert later and all(output.prefill_s is None for output, _ in later)


def test_refused_and_aborted_requests_leave_no_work_and_no_kv(engine: Engine) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit(request("bad", []))
    assert not engine.has_work and engine.stats().num_prompt_tokens == 0
    engine.submit(request("a", [3] * 40, max_tokens=20))
    engine.step()
    engine.abort("a")
    engine.abort("a")
    assert not engine.has_work and engine.stats().kv_used_fraction == 0.0


def test_heartbeat_is_announced_and_checks_the_block_pool(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Op] = []
    monkeypatch.setattr(engine.ranks, "announce", said.append)
    engine.heartbeat()
    engine.stop()
    assert said == [Op.HEARTBEAT, Op.STOP]
    engine.scheduler.pool.allocate(1)  # a block that belongs to nobody
    with pytest.raises(AssertionError, match="blocks are lost"):
        engine.heartbeat()
