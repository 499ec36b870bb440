"""TemplateReader: reads answers by the response template that comes with a tokenizer, where no format of ours is known.

Owns what becomes of the parser's events. Not here: the parser, which is transformers' (since 5.13), and formats that
are enforced (formats.py, answer_reader.py). Text streams as it comes; a call is given when it is complete, because its
value is known only then. Nothing holds the model to a form that a template merely describes, so a call may have any
name and arguments, and text that cannot be read becomes content.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medusa_dist.text.tools.parts import CallArguments, CallStart, Content, Part, Reasoning

_TEXTS: Mapping[str, type[Content | Reasoning]] = {
    "content": Content,
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), Reasoning),
}
_CALLS = "tool_calls"
Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """A tokenizer with a response template that can be read. spec: the template."""

    tokenizer: Any
    spec: Mapping[str, Any]

    @property
    def has_calls(self) -> bool:
        """Whether it says how calls are written."""
        return _CALLS in self.spec["fields"]

    @property
    def has_reasoning(self) -> bool:
        """Whether it says how reasoning is written."""
        return any(_TEXTS.get(name) is Reasoning for name in self.spec["fields"])

    @property
    def text(self) -> str:
        """All of it as one text, in which its marks occur."""
        return "\n".join(_texts(self.spec))

    def reader(self, prompt: str, tools: Sequence[Mapping[str, Any]] | None) -> "TemplateReader":
        """A reader for one answer. prompt: as rendered. tools: of the request; their schemas give arguments types."""
        parser = self.tokenizer.get_response_parser(prefix=prompt, tools=list(tools or ()))
        return TemplateReader(parser, self.spec)


def response_template(tokenizer: Any) -> ResponseTemplate | None:
    """The response template of a tokenizer; None if it has none, or one that transformers here cannot read."""
    spec = getattr(tokenizer, "response_template", None)
    if spec is None or not hasattr(tokenizer, "get_response_parser"):
        return None
    try:
        tokenizer.get_response_parser(prefix="")
    except (ValueError, TypeError, KeyError):
        return None
    return ResponseTemplate(tokenizer, spec)


class TemplateReader:
    """Takes the text of one answer, special tokens included, in pieces of any size; the same as AnswerReader."""

    def __init__(self, parser: Any, spec: Mapping[str, Any]) -> None:
        self._parser = parser
        self._fields = spec["fields"]
        self._text = ""  # of the open field
        self._num_sent = 0  # characters of it
        self._is_plain = False  # the parser has failed: what follows is content
        self.num_calls = 0

    def feed(self, text: str, is_last: bool = False) -> list[Part]:
        """The parts that more text completes. is_last: no text follows."""
        if self._is_plain:
            return [Content(text)] if text else []
        parts: list[Part] = []
        num_read = 0
        try:
            # One by one: where the parser fails does not depend on the pieces, and no event is lost with it.
            for num_read, char in enumerate(text, 1):  # noqa: B007
                for event in self._parser.feed(char):
                    parts += self._parts(event)
            if is_last:
                for event in self._parser.finalize()[1]:
                    parts += self._parts(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._is_plain = True
            rest = self._text[self._num_sent :] + text[num_read:]
            if rest:
                parts.append(Content(rest))
        return parts

    def _parts(self, event: Event) -> Iterator[Part]:
        match event["type"]:
            case "region_open":
                self._text, self._num_sent = "", 0
            case "region_chunk":
                self._text += event["text"]
                if self._streams(event["field"]):
                    yield from self._more_text(event["field"])
            case "region_close":
                if event["field"] == _CALLS:
                    yield from self._calls(event["value"])
                elif not self._streams(event["field"]) and isinstance(event["value"], str) and event["value"]:
                    yield _TEXTS.get(event["field"], Content)(event["value"])
                self._text, self._num_sent = "", 0

    def _streams(self, field: str) -> bool:
        """Whether the text of a field is its value, but for blanks around it."""
        about = self._fields[field]
        return field in _TEXTS and about.get("content", "text") == "text" and about.get("transform") is None

    def _more_text(self, field: str) -> Iterator[Part]:
        """The text that is certain by now: blanks at either end are no part of it, unless the template says so."""
        start, end = self._num_sent, len(self._text)
        if (self._fields[field].get("content_args") or {}).get("strip", True):
            end = len(self._text.rstrip())
            if start == 0:
                start = len(self._text) - len(self._text.lstrip())
        if end > start:
            yield _TEXTS[field](self._text[start:end])
            self._num_sent = end

    def _calls(self, value: Any) -> Iterator[Part]:
        for call in value if isinstance(value, list) else [value]:
            function = call.get("function", call)
            arguments = function.get("arguments") or {}
            yield CallStart(self.num_calls, str(function["name"]))
            yield CallArguments(
                self.num_calls, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            )
            self.num_calls += 1


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
