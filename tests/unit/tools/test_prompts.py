"""Prompt files."""

from pathlib import Path

import pytest

from medusa_dist.bench.bench import PROMPTS
from medusa_dist.errors import ConfigError
from medusa_dist.tools.prompts import SHIPPED, Question, read_prompts


def test_prompts_are_read_from_text_lines_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Why?\n\n  How so? \n")
    assert read_prompts(tmp_path / "plain.txt") == [Question("Why?"), Question("How so?")]
    (tmp_path / "kinds.jsonl").write_text('{"prompt": "1 + 1", "category": "math"}\n{"prompt": "Hi"}\n')
    assert read_prompts(tmp_path / "kinds.jsonl") == [Question("1 + 1", "math"), Question("Hi")]


def test_shipped_questions_are_the_bench_prompts_with_categories() -> None:
    shipped = read_prompts(SHIPPED)
    assert [p.text for p in shipped] == PROMPTS.read_text().splitlines()
    assert {p.category for p in shipped} == {"writing", "knowledge", "code", "reasoning", "lists"}


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"', r"line 2 is not valid JSON"),
        ("a.jsonl", '{"prompt": "x", "kind": "y"}', r"line 1: kind: unknown key"),
        ("a.jsonl", '\n{"category": "y"}', r"line 2: prompt: Field required"),
        ("a.txt", "\n \n", "contains no prompts"),
    ],
)
def test_invalid_prompt_file_is_refused_with_line_and_key(tmp_path: Path, name: str, text: str, error: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=error):
        read_prompts(tmp_path / name)


def test_missing_prompt_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt cannot be read"):
        read_prompts(tmp_path / "gone.txt")
