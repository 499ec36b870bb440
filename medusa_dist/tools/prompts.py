"""Prompt files of the tools: questions, with an optional category.

Owns the two formats: .jsonl with {"prompt": ..., "category": ...} per line, any other file with one prompt per line.
Not here: answers (heads_tools/record_drafts.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medusa_dist.config import explain_validation
from medusa_dist.config_parts.strict import Strict
from medusa_dist.errors import ConfigError
from medusa_dist.llm import LLM
from medusa_dist.text.chat_template import encode_question

SHIPPED = Path(__file__).parents[1] / "data" / "eval_prompts.jsonl"


class _Line(Strict):
    prompt: str
    category: str = ""


@dataclass(frozen=True)
class Question:
    """One question; category "" if the file has none."""

    text: str
    category: str = ""


def read_prompts(path: Path) -> list[Question]:
    """All prompts of a file. Raises ConfigError naming the invalid line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{path} contains no prompts")
    if path.suffix != ".jsonl":
        return [Question(line.strip()) for _, line in numbered]
    return [_parse(path, number, line) for number, line in numbered]


def _parse(path: Path, number: int, line: str) -> Question:
    try:
        parsed = _Line.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {number} is not valid JSON: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}, line {number}: {explain_validation(error)}") from None
    return Question(parsed.prompt, parsed.category)


def prompt_ids(llm: LLM, text: str) -> list[int]:
    """A question in the model's tokens: through its chat template if it has one, else as it is."""
    return encode_question(llm.tokenizer, text)
