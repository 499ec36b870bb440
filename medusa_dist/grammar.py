"""Grammar: a constraint on a request's output.

Owns the Grammar class, its kinds, and the checks that need no tokenizer. Not here: matching tokens
(engine/state/matcher.py), the HTTP fields (api/schema/structured_outputs.py). Imports only errors and json_schema.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from medusa_dist.errors import RequestError
from medusa_dist.json_schema import enforceable

MAX_CHARS = 65_536  # of a grammar's text: compiling takes about 1.5 us per character
MAX_ANSWER_CHARS = 262_144  # agents send dozens of tools
MAX_CHOICES = 2_000
_OUTPUTS = "structured_outputs"


class GrammarKind(StrEnum):
    """How a grammar's text is interpreted."""

    JSON_SCHEMA = "json_schema"  # a JSON schema, as JSON
    JSON_OBJECT = "json_object"  # empty: any JSON object
    REGEX = "regex"  # a regular expression in the syntax of Rust's regex, matched against the whole output
    CHOICE = "choice"  # a JSON list of texts, one of which is the output
    EBNF = "ebnf"  # a context-free grammar: Lark as llguidance reads it, or llama.cpp's GBNF
    ANSWER = "answer"  # Lark for reasoning and tool calls; @body stands for another grammar


@dataclass(frozen=True, slots=True)
class Grammar:
    """All outputs that are valid for a request. Created by the functions below, each of which raises RequestError.

    param: the request field it came from; errors name it, and equality ignores it. body: the grammar that an ANSWER
    refers to, if any.
    """

    kind: GrammarKind
    text: str = ""
    param: str = field(default="grammar", compare=False)
    body: "Grammar | None" = None

    def __post_init__(self) -> None:
        most = MAX_ANSWER_CHARS if self.kind is GrammarKind.ANSWER else MAX_CHARS
        if len(self.text) > most:
            raise self.error(f"its text has {len(self.text)} characters; the maximum is {most}")
        if not self.text and self.kind is not GrammarKind.JSON_OBJECT:
            raise self.error("it is empty")

    def error(self, reason: str) -> RequestError:
        """The error for a request with an invalid grammar."""
        what = "a schema of this request" if self.kind is GrammarKind.ANSWER else f"this {self.kind}"
        return RequestError(f"{self.param}: {what} cannot be used: {reason}", self.param)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, param: str = "grammar") -> "Grammar":
        """The output is JSON that matches a JSON schema, given as an object or as JSON text."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{param}: the schema is not valid JSON: {error}", param) from None
        schema = {} if schema is True else schema  # both accept every value
        if not isinstance(schema, Mapping):
            raise RequestError(f"{param}: a JSON schema must be an object (or true)", param)
        try:
            text = json.dumps(enforceable(schema, param), allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise RequestError(f"{param}: the schema cannot be written as JSON: {error}", param) from None
        return cls(GrammarKind.JSON_SCHEMA, text, param)

    @classmethod
    def json(cls, param: str = "grammar") -> "Grammar":
        """The output is any JSON object."""
        return cls(GrammarKind.JSON_OBJECT, "", param)

    @classmethod
    def regex(cls, pattern: str, param: str = "grammar") -> "Grammar":
        """The whole output matches a regular expression."""
        return cls(GrammarKind.REGEX, pattern, param)

    @classmethod
    def choice(cls, texts: Iterable[str], param: str = "grammar") -> "Grammar":
        """The output is one of the texts."""
        listed = list(texts)
        if isinstance(texts, str) or not listed or not all(isinstance(text, str) and text for text in listed):
            raise RequestError(f"{param}: choices must be a list of non-empty texts", param)
        if len(listed) > MAX_CHOICES:
            raise RequestError(f"{param}: {len(listed)} choices; the maximum is {MAX_CHOICES}", param)
        return cls(GrammarKind.CHOICE, json.dumps(listed), param)

    @classmethod
    def ebnf(cls, text: str, param: str = "grammar") -> "Grammar":
        """The output is a sentence of a context-free grammar, in llguidance's Lark syntax or GBNF."""
        return cls(GrammarKind.EBNF, text, param)

    @classmethod
    def answer(cls, lark: str, param: str, body: "Grammar | None" = None) -> "Grammar":
        """The output is an answer with reasoning or tool calls. body: what @body in the text stands for."""
        return cls(GrammarKind.ANSWER, lark, param, body)


def _any_json(_: bool, param: str) -> Grammar:
    return Grammar.json(param)


@dataclass(kw_only=True)
class StructuredOutputsParams:
    """vLLM's class of the same name: exactly one kind of grammar. Raises RequestError naming the field.

    json: a JSON schema, as an object or as text. The last four options of vLLM are refused.
    """

    json: Mapping[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None

    def __post_init__(self) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern", "structural_tag"):
            if getattr(self, name):
                field = f"{_OUTPUTS}.{name}"
                raise RequestError(
                    f"{field} is not supported; put it into the schema or a grammar, or remove it", field
                )
        self.as_grammar()

    def as_grammar(self) -> Grammar:
        """The one grammar that is asked for."""
        kinds: dict[str, tuple[Any, Callable[[Any, str], Grammar]]] = {
            "json": (self.json, Grammar.json_schema),
            "regex": (self.regex, Grammar.regex),
            "choice": (self.choice, Grammar.choice),
            "grammar": (self.grammar, Grammar.ebnf),
            "json_object": (self.json_object or None, _any_json),
        }
        given = [(value, make) for value, make in kinds.values() if value is not None]
        if len(given) != 1:
            raise RequestError(f"{_OUTPUTS} needs exactly one of {', '.join(kinds)}", _OUTPUTS)
        value, make = given[0]
        return make(value, _OUTPUTS)
