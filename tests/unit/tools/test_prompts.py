"""Prompt files."""

from pathlib import Path

import pytest

from medusa_dist.bench.bench import PROMPTS
from medusa_dist.errors import ConfigError
from medusa_dist.tools.prompts import SHIPPED, Question, read_prompts


def test_lines_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Why?\n\n  How so? \n")
    assert read_prompts(tmp_path / "plain.txt") == [Question("Why?"), Question("How so?")]
    (tmp_path / "kinds.jsonl").write_text('{"prompt": "1 + 1", "category": "math"}\n{"prompt": "Hi"}\n')
    assert read_prompts(tmp_path / "kinds.jsonl") == [Question("1 + 1", "math"), Question("Hi")]


def test_the_shipped_ones_are_the_benchs_with_categories() -> None:
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
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, error: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=error):
        read_prompts(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt cannot be read"):
        read_prompts(tmp_path / "gone.txt")
