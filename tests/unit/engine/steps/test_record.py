"""Records of steps are what the steps were, and without an observer nothing is kept."""

from pathlib import Path

import pytest

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.steps.record import LoggedStep
from medusa_dist.medusa.trees.budget import StepCost
from tests.support.tiny_engine import Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> EngineRank:
    folder: Path = tmp_path_factory.mktemp("llama")
    save_model("llama", folder)
    return EngineRank(tiny_config(folder), folder)


def observed(engine: Engine) -> list[LoggedStep]:
    records: list[LoggedStep] = []
    engine.recorder.observers.append(records.append)
    return records


def asked() -> list:
    sampling = {"temperature": 0.0, "ignore_eos": True}
    return [request("a", [3, 4, 5], max_tokens=20, **sampling), request("b", [6] * 30, max_tokens=9, **sampling)]


def truth_of(rank: EngineRank) -> dict[str, tuple[int, ...]]:
    return {name: output.token_ids for name, output in decode(engine_over(rank, Setting()), asked()).outputs.items()}


def test_records_have_all_tokens_drafts_and_accepted_drafts_of_the_run(rank: EngineRank) -> None:
    truth = truth_of(rank)
    engine = engine_over(rank, Setting(nodes=7, skill=0.7), truth)
    records = observed(engine)
    run = decode(engine, asked())
    trees = [tree for record in records for tree in record.trees]
    for name in "ab":
        mine = [tree for tree in trees if tree.request_id == name]
        assert sum((tree.tokens for tree in mine), ()) == truth[name] == run.outputs[name].token_ids
        assert [tree.position for tree in mine] == [sum(len(t.tokens) for t in mine[:i]) for i in range(len(mine))]
        assert [tree.root for tree in mine[1:]] == [tree.tokens[-1] for tree in mine[:-1]]
    assert sum(len(tree.tree) for tree in trees) == run.drafted > 0
    assert sum(len(tree.accepted) for tree in trees) == run.accepted > 0
    for tree in trees:
        assert tuple(tree.tree.tokens[node] for node in tree.accepted) == tree.tokens[:-1]
        assert len(tree.values) == len(tree.drafters) == len(tree.tree)
        assert tree.num_ranked == tree.num_worthwhile >= len(tree.tree)


def test_rows_phases_and_load_of_a_record_are_those_of_its_step(rank: EngineRank) -> None:
    engine = engine_over(rank, Setting(nodes=7, max_batched_tokens=16))
    records = observed(engine)
    run = decode(engine, asked())
    assert [record.step for record in records] == sorted({record.step for record in records})
    assert len(records) == engine.stats().num_steps <= run.num_steps
    for record in records:
        roots = len(record.trees)
        assert record.num_rows == record.num_prompt_rows + roots + sum(len(tree.tree) for tree in record.trees)
    assert sum(record.num_prompt_rows for record in records) == 2 + 29  # all of the prompts but their last
    for phase, total in engine.stats().phase_seconds.items():
        assert sum(record.seconds[phase] for record in records) == pytest.approx(total)
    assert all(record.seconds["forward"] > 0 for record in records)
    assert [r.at for r in records] == sorted(r.at for r in records)
    assert records[0].kv_used_fraction > 0 and records[-1].num_running == 0 and records[0].num_running > 0
    assert set(records[0].drafted_for) == {"heads", "lookup"} and records[-1].drafted_for["heads"] == 0


def test_record_tells_which_drafts_the_budget_and_the_scheduler_cut(rank: EngineRank) -> None:
    truth = truth_of(rank)
    engine = engine_over(rank, Setting(nodes=7, skill=1.0, max_batched_tokens=12), truth)
    # Rows are free up to four, and dear after them.
    engine.policy.cost_model.measured = StepCost((1, 4, 16), (0.01, 0.0101, 1.0))
    records = observed(engine)
    decode(engine, asked()[:1])
    cut = [t for r in records for t in r.trees if t.num_ranked]
    assert cut and all(tree.num_worthwhile < tree.num_ranked for tree in cut)
    assert any(len(tree.tree) == tree.num_worthwhile for tree in cut)

    engine = engine_over(rank, Setting(nodes=7, skill=1.0, max_batched_tokens=8, max_running=8), truth)
    records = observed(engine)
    decode(engine, asked())
    crowded = [r for r in records if len(r.trees) == 2]
    assert crowded and any(len(tree.tree) < tree.num_worthwhile for r in crowded for tree in r.trees)


def test_samples_are_those_of_the_steps_since_the_last_call(rank: EngineRank) -> None:
    engine = engine_over(rank, Setting(nodes=7, skill=0.7, max_running=1), truth_of(rank))
    assert engine.take_samples() == [], "the first call begins the collection"
    records = observed(engine)
    run = decode(engine, asked())
    samples = engine.take_samples()
    assert len(samples) == len(records) and engine.take_samples() == []
    assert sum(sample.num_nodes for sample in samples) == run.drafted > 0
    tokens = [len(tree.tokens) for record in records for tree in record.trees]
    assert [count for sample in samples for count in sample.sequence_tokens] == tokens and sum(tokens) == 29
    assert [sample.seconds for sample in samples] == [record.seconds for record in records]


def test_queue_time_is_recorded_once_for_each_request_when_it_first_runs(rank: EngineRank) -> None:
    engine = engine_over(rank, Setting(max_running=1))
    records = observed(engine)
    decode(engine, asked())
    waited = [(i, seconds) for i, record in enumerate(records) for seconds in record.queue_seconds]
    (first, short), (second, long) = waited
    assert first == 0 and second >= 20, "b runs after the 20 steps of a"
    assert 0 <= short < long
    assert long >= sum(sum(record.seconds.values()) for record in records[:20])


def test_a_preempted_request_is_not_queued_anew(rank: EngineRank) -> None:
    engine = engine_over(rank, Setting(num_blocks=5))
    records = observed(engine)
    run = decode(engine, [request(name, [3] * 14, max_tokens=30, ignore_eos=True) for name in "ab"])
    assert run.num_preemptions > 0
    assert sum(len(record.queue_seconds) for record in records) == 2


def test_without_observers_nothing_is_recorded(rank: EngineRank) -> None:
    engine = engine_over(rank, Setting(nodes=7))
    decode(engine, asked())
    assert vars(engine.recorder)["_trees"] == () and vars(engine.recorder)["_before"] == {}
