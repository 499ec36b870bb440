"""A model's own answers as a file: what is in it, and that a kill loses nothing."""

import json
from pathlib import Path

import pytest

from medusa_dist.errors import ConfigError
from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.training.distill import distill, origin_of
from medusa_dist.training.distilled_dataset import read_answers
from tests.support.tiny_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["the cat", "a dog", "the end of it", "one", "x" * 200]  # the last does not fit the model


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    folder = save_llm(tmp_path_factory.mktemp("bytes"))
    with LLM(str(folder), heads=str(folder / "heads"), kv_cache_tokens=1024, max_running=3) as made:
        yield made


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "category": p[0]}) + "\n" for p in PROMPTS))
    return path


def test_distilled_answers_are_the_models_own(llm: LLM, prompts: Path, tmp_path: Path) -> None:
    origin = origin_of(llm, prompts, (0.0, 0.9), 2, 12)
    made = distill(llm, prompts, tmp_path / "answers.jsonl", origin)
    found, answers = read_answers(tmp_path / "answers.jsonl")
    assert found == origin and found.fingerprint == llm.facts["fingerprint"]
    assert {a.id for a in answers} == made.done == {f"{i}:{s}" for i in range(4) for s in range(2)}
    assert made.num_tokens == sum(len(a.output_ids) for a in answers)
    for answer in answers:
        number, sample = (int(part) for part in answer.id.split(":"))
        assert answer.temperature == (0.0, 0.9)[(number + sample) % 2] and answer.category == PROMPTS[number][0]
        assert list(answer.prompt_ids) == llm.chat_ids([{"role": "user", "content": PROMPTS[number]}])
        assert answer.finish_reason in ("stop", "length")
        if answer.temperature == 0:
            params = SamplingParams(temperature=0.0, max_tokens=12)
            assert answer.output_ids == llm.generate([list(answer.prompt_ids)], params)[0].token_ids


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_answers_of_two_ranks_are_those_of_one(llm: LLM, prompts: Path, tmp_path: Path) -> None:
    keys = {"tensor_parallel_size": 2, "device": "cpu", "resources": {"cpus_per_rank": 0.5, "threads_per_rank": 1}}
    with LLM(llm.config.model, kv_cache_tokens=1024, max_running=3, **keys) as two:
        made = [
            distill(it, prompts, tmp_path / f"{i}", origin_of(it, prompts, (0.0, 0.9), 1, 12))
            for i, it in enumerate((llm, two))
        ]
    one, other = (sorted(it.path.read_text().splitlines()) for it in made)
    assert one == other and len(one) == 5


def test_resumed_distillation_equals_an_uninterrupted_one(llm: LLM, prompts: Path, tmp_path: Path) -> None:
    origin = origin_of(llm, prompts, (0.0, 0.9), 2, 12)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    distill(llm, prompts, whole, origin)
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:4]) + lines[4][:25])  # killed while it wrote
    said: list[str] = []
    again = distill(llm, prompts, cut, origin, said.append)
    assert len(again.done) == 8 and cut.read_text().splitlines(keepends=True)[:4] == lines[:4]
    assert sorted(cut.read_text().splitlines()) == sorted(whole.read_text().splitlines())  # the same seeds again
    assert said[0] == "distilling: 3 of 8 answers" and len(said) == 6
    assert said[-1] == f"distilling: 8 of 8 answers, {again.num_tokens:,} tokens"
    before = cut.read_text()
    distill(llm, prompts, cut, origin)
    assert cut.read_text() == before


def test_file_made_with_other_options_is_not_resumed(llm: LLM, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    distill(llm, prompts, target, origin_of(llm, prompts, (0.0,), 1, 5))
    with pytest.raises(ConfigError, match="made with other options \\(max_tokens: 5, now 6\\)"):
        distill(llm, prompts, target, origin_of(llm, prompts, (0.0,), 1, 6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{}\n", "line 1: model"),
        ("nonsense\n", "line 1: config: Invalid JSON"),
        ('{"ORIGIN"}\n{"id": "0:0"}\n', "line 2: temperature"),
    ],
)
def test_file_without_valid_answers_is_refused(
    text: str, message: str, llm: LLM, prompts: Path, tmp_path: Path
) -> None:
    origin = origin_of(llm, prompts, (0.0,), 1, 5)
    path = tmp_path / "bad.jsonl"
    path.write_text(text.replace('{"ORIGIN"}', origin.model_dump_json()))
    with pytest.raises(ConfigError, match=message):
        read_answers(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_answers(tmp_path / "nowhere.jsonl")
