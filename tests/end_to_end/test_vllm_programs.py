"""Programs for vLLM run with another import line, and nothing else changed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import vllm_programs
from tests.support.tiny_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the programs' hub id is a model."""
    place = tmp_path_factory.mktemp("models")
    save_llm(place / "facebook" / "opt-125m", max_model_len=300)
    return place


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a program; returns what it shows."""
    monkeypatch.chdir(place)

    def start(program: str) -> list[Any]:
        ours = re.sub(r"^from vllm\b", "from medusa_dist", program, flags=re.M)
        assert "vllm" not in ours
        names: dict[str, Any] = {}
        exec(compile(ours, "program", "exec"), names)
        names["llm"].shutdown()
        return names["shown"]

    return start


def test_basic_program_shows_its_prompts_and_texts(run) -> None:
    assert [(prompt, type(text)) for prompt, text in run(vllm_programs.BASIC)] == [
        ("Hello, my name is", str),
        ("The capital of France is", str),
    ]


def test_program_with_constructor_arguments_shows_its_ids(run) -> None:
    ((ids, text),) = run(vllm_programs.ARGUMENTS)
    assert len(ids) == len("Hello") and len(text) <= 4 * 4


def test_program_with_n_shows_outputs_whose_logprobs_add_up(run) -> None:
    shown = run(vllm_programs.SEVERAL)
    assert [index for index, *_ in shown] == [0, 1, 2]
    for _, rest, best, reason in shown:
        assert abs(rest) < 1e-9 and all(isinstance(text, str) for text in best)
        assert len(best) == 6 if reason == "length" else reason == "stop"


def test_chat_program_shows_one_output_per_conversation(run) -> None:
    assert len(run(vllm_programs.CHAT)) == 4


def test_structured_program_shows_texts_that_match(run) -> None:
    shown = dict(run(vllm_programs.STRUCTURED))
    assert shown["choice"] in ("Positive", "Negative")
    assert re.fullmatch(r"[a-z]{2}@[a-z]{2}\.com", shown["regex"])
    assert re.fullmatch(r"SELECT col_[12] from table_[12]", shown["grammar"])
    assert shown["json"].lstrip().startswith("{")
    try:
        car = json.loads(shown["json"])
    except ValueError:
        assert len(shown["json"].encode()) >= 90, "cut by max_tokens, else it is complete"
    else:
        assert isinstance(car["doors"], int) and car["kind"] in ("sedan", "truck")
