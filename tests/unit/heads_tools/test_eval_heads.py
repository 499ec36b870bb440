"""eval-heads on a tiny model: the report's parts agree with each other and with the engine."""

import json
from pathlib import Path

import pytest

from medusa_dist import LLM, SamplingParams
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.heads_tools.eval_heads import MAX_NODES, Asked, Speed, as_json, eval_heads, joined, write_accuracies
from medusa_dist.medusa.heads.heads_file import read_heads
from tests.support.tiny_tool_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PARAMS = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eval")
    save_llm(made)
    (made / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "category": c}) + "\n" for p, c in (("ab", "x"), ("c", "y"), ("def", "x")))
    )
    return made


@pytest.fixture(scope="module")
def llm(folder: Path):
    with LLM(str(folder), heads=str(folder / "heads"), speculation=[[0], [1], [0, 0]], kv_cache_tokens=2048) as llm:
        yield llm


def test_report_counts_positions_categories_and_tree_curves(llm: LLM, folder: Path) -> None:
    said: list[str] = []
    report = eval_heads(llm, "mine", Asked(folder / "prompts.jsonl", PARAMS, 1), said.append)
    assert [c.name for c in report.categories] == ["x", "y"] and [c.answers for c in report.categories] == [2, 1]
    assert report.whole.places == 3 * 23 == sum(c.places for c in report.categories)
    for ranks in report.whole.top_accuracies:
        assert len(ranks) == 10 and ranks == sorted(ranks) and ranks[0] >= 0 and ranks[-1] <= 1
    assert len(report.dynamic) == len(report.static) == MAX_NODES and report.dynamic == sorted(report.dynamic)
    assert report.whole.tokens_per_step[7] == pytest.approx(report.dynamic[6])
    assert report.whole.speed.prompts == 2 and report.whole.speed.tokens_per_step >= 1.0
    assert "recording: 3 of 3 answers" in said and "timing: 1 of 2 categories, y" in said
    assert json.loads(as_json(report))["whole"]["places"] == 69


def test_accuracies_are_written_into_the_head_file(llm: LLM, folder: Path) -> None:
    report = eval_heads(llm, "mine", Asked(folder / "prompts.jsonl", PARAMS, 0), lambda _: None)
    assert report.whole.speed is None
    write_accuracies(folder / "heads", report)
    about = read_heads(folder / "heads").description
    assert about.top_accuracies[0] == tuple(round(x, 3) for x in report.whole.top_accuracies[0])
    assert about.training["measured"]["places"] == 69


def test_tokens_changed_by_speculation_are_an_error(llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = llm.generate

    def dishonest(prompts, params):
        output = honest(prompts, params)
        if params.speculation:
            output[0].outputs[0].token_ids.pop()
        return output

    monkeypatch.setattr(llm, "generate", dishonest)
    with pytest.raises(EngineError, match="prompt 0: speculation changed the tokens"):
        eval_heads(llm, "mine", Asked(folder / "prompts.jsonl", PARAMS, 1), lambda _: None)


def test_eval_heads_without_heads_is_a_config_error(folder: Path) -> None:
    with (
        LLM(str(folder), kv_cache_tokens=512) as llm,
        pytest.raises(ConfigError, match="there are none for this model: speculation is lookup"),
    ):
        eval_heads(llm, "none", Asked(folder / "prompts.jsonl", PARAMS), lambda _: None)


def test_joined_speeds_weigh_categories_equally() -> None:
    both = joined([Speed(1, 1.0, 10.0, 10.0), Speed(3, 2.0, 30.0, 10.0)])
    assert both == Speed(4, pytest.approx(4 / 3), pytest.approx(15.0), pytest.approx(10.0))
    assert both.speedup == pytest.approx(1.5)
