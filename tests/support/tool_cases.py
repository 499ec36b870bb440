"""Tools, their calls in each format, and a tokenizer with the formats' marks as tokens."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from medusa_dist.text.tools.formats import ToolFormat
from medusa_dist.text.tools.parts import CallArguments, CallStart, Content, Part, Reasoning
from tests.support.tiny_tokenizers import byte_tokenizer

SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
            "now": {"type": "boolean"},
        },
        "required": ["city"],
    },
    "get": {  # a prefix of the other name
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["tags"],
    },
    "ping": {"type": "object", "properties": {}},
}
Calls = Sequence[tuple[str, Mapping[str, Any]]]
CALLS: Calls = (
    ("get_weather", {"city": 'Par"is ☔}', "days": 3, "now": True}),
    ("get", {"tags": ["a", "b"]}),
    ("ping", {}),
)
MARKS = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "[THINK]"),
    *("[/THINK]", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    "<｜tool▁calls▁end｜>",
)


def marks_tokenizer() -> PreTrainedTokenizerFast:
    """A byte tokenizer in which each mark is one token; those in square brackets are special, as Mistral's are."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=mark.startswith("[")) for mark in MARKS])
    return tokenizer


def write_calls(form: ToolFormat, calls: Calls) -> str:
    """Calls as a model with this format writes them."""
    written = [f"{form.begin}{name}{form.middle}{_arguments(form, values)}{form.end}" for name, values in calls]
    return form.opening + form.separator.join(written) + form.closing


def _arguments(form: ToolFormat, values: Mapping[str, Any]) -> str:
    match form.arguments:
        case "json":
            return json.dumps(values, ensure_ascii=False)
        case "python":
            python = {True: "True", False: "False", None: "None"}
            texts = {
                k: python[v] if v is None or isinstance(v, bool) else json.dumps(v, ensure_ascii=False)
                for k, v in values.items()
            }
            return ", ".join(f"{key}={text}" for key, text in texts.items())
        case "xml":
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
            return "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())


def collected(parts: Iterable[Part]) -> tuple[str, str, list[tuple[str, str]]]:
    """Reasoning, content, and (name, arguments) of each call."""
    reasoning = content = ""
    calls: list[list[str]] = []
    for part in parts:
        match part:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case CallStart(index, name):
                assert index == len(calls)
                calls.append([name, ""])
            case CallArguments(index, text):
                calls[index][1] += text
    return reasoning, content, [(name, text) for name, text in calls]
