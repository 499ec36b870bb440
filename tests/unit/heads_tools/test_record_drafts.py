"""Recorded answers against the engine: the replay of a tree must take the very steps that the engine takes with it."""

from pathlib import Path

import pytest

from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.heads_tools.record_drafts import record
from medusa_dist.medusa.trees.calibration import GREEDY, SAMPLED
from medusa_dist.medusa.trees.replay import num_steps, static_accepted
from medusa_dist.sampling_params import SamplingParams
from tests.support.counting_model import save_counting_model, shifted
from tests.support.counting_model import save_heads as save_counting_heads
from tests.support.tiny_engine import STATIC, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [([3, 4, 5], "a"), ([9], "b"), ([1, 1, 7, 8, 20, 30], "a"), ([12, 2], "b")]


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> EngineRank:
    folder: Path = tmp_path_factory.mktemp("llama")
    save_model("llama", folder)
    return EngineRank(tiny_config(folder, max_running=2), folder)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replay_of_a_tree_takes_as_many_steps_as_the_engine(rank: EngineRank, temperature: float) -> None:
    params = SamplingParams(max_tokens=40, temperature=temperature, ignore_eos=True)
    said: list[str] = []
    answers = record(rank.engine, PROMPTS, params, said.append)
    run = decode(
        engine_over(rank, Setting(nodes=None, max_running=2)),
        [
            request(str(i), ids, seed=i, max_tokens=40, temperature=temperature, ignore_eos=True)
            for i, (ids, _) in enumerate(PROMPTS)
        ],
    )
    for i, answer in enumerate(answers):
        output = run.outputs[str(i)]
        assert answer.tokens == output.token_ids
        assert num_steps(answer, static_accepted(answer, STATIC)) == output.stats.num_steps
    assert run.accepted > 0
    assert [answer.category for answer in answers] == ["a", "b", "a", "b"]
    assert {answer.sampling_mode for answer in answers} == {SAMPLED if temperature else GREEDY}
    assert said[0] == "recording: 0 of 4 answers" and said[-1] == "recording: 4 of 4 answers"


def test_every_position_of_an_answer_has_its_guesses(tmp_path: Path) -> None:
    """A model that counts, and heads that count on: at each place they offer the tokens that come."""
    save_counting_model(tmp_path, shifted(1))
    save_counting_heads(tmp_path / "heads", [shifted(k + 1) for k in (1, 2, 3)])
    engine = EngineRank(tiny_config(tmp_path), tmp_path).engine
    (answer,) = record(engine, [([4], "")], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True))
    assert answer.tokens == tuple(range(5, 14))
    assert [g.tokens[:, 0].tolist() for g in answer.guesses] == [[t + 1, t + 2, t + 3] for t in range(5, 13)]


def test_recording_leaves_the_engines_statistics_and_blocks_unchanged(rank: EngineRank) -> None:
    engine = rank.engine
    before = engine.stats()
    record(engine, PROMPTS[:1], SamplingParams(max_tokens=5, temperature=0.0))
    after = engine.stats()
    assert (after.num_steps, after.num_tokens) == (before.num_steps, before.num_tokens) and not engine.has_work
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_usable
