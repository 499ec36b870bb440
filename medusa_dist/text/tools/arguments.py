"""Readers of a call's arguments, from the text of each format to JSON, while the text grows.

Owns where the arguments end, and their conversion to JSON. Not here: the texts around them (call_reader.py).
"""

import ast
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from medusa_dist.text.tools.formats import Arguments


class ArgumentsReader(ABC):
    """Reads the arguments of one call. is_over: they are complete; later text is not theirs."""

    is_over = False

    @abstractmethod
    def feed(self, text: str) -> tuple[str, str]:
        """Take more text. Returns the JSON that became known, and the text behind the arguments, if they ended.

        Raises ValueError if the arguments cannot be read.
        """


class JsonArguments(ArgumentsReader):
    """One JSON value, passed on as it comes."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> tuple[str, str]:
        """Find the bracket that closes the object."""
        for i, char in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_over = True
                    return text[: i + 1], text[i + 1 :]
        return text, ""


class PythonArguments(ArgumentsReader):
    """Keyword arguments up to the closing parenthesis, which is left in the text. Values are Python literals."""

    def __init__(self) -> None:
        self._text = ""
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    def feed(self, text: str) -> tuple[str, str]:
        """Collect the text, and convert it once it is complete."""
        for i, char in enumerate(text):
            if self._quote:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in "([{":
                self._depth += 1
            elif char in ")]}":
                if self._depth == 0:
                    self.is_over = True
                    return self._json(self._text + text[:i]), text[i:]
                self._depth -= 1
        self._text += text
        return "", ""

    @staticmethod
    def _json(text: str) -> str:
        try:
            call = ast.parse(f"f({text})", mode="eval").body
            assert isinstance(call, ast.Call)
            if call.args:
                raise ValueError("an argument has no name")
            return json.dumps({str(word.arg): ast.literal_eval(word.value) for word in call.keywords})
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"not keyword arguments: {error}") from None


class XmlArguments(ArgumentsReader):
    """Elements <parameter=name>, each with a text, up to </function>, which is left in the text.

    schema: of the arguments; it says which values are texts and which are JSON.
    """

    _END = "</function>"
    _PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._text = ""
        self._properties = properties_of(schema)

    def feed(self, text: str) -> tuple[str, str]:
        """Collect the text, and convert it once it is complete."""
        self._text += text
        end = self._text.find(self._END)
        if end < 0:
            return "", ""
        self.is_over = True
        values = {name: self._value(name, value) for name, value in self._PARAMETER.findall(self._text[:end])}
        return json.dumps(values), self._text[end:]

    def _value(self, name: str, text: str) -> Any:
        if is_text(self._properties.get(name)):
            return text
        try:
            return json.loads(text)
        except ValueError:
            return text


def properties_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of an object's schema, each with the schemas that references stand for: its own, and those of the
    branches of a union. References further below keep what they lead to.
    """
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {name: _resolved(value, shared) for name, value in (schema.get("properties") or {}).items()}


def _resolved(schema: Any, shared: Mapping[str, Any]) -> Any:
    for _ in range(16):  # references to references; a circle ends here
        ref = schema.get("$ref") if isinstance(schema, Mapping) else None
        group, _, key = ref.removeprefix("#/").partition("/") if isinstance(ref, str) else ("", "", "")
        if key not in shared.get(group, {}):
            break
        schema = shared[group][key]
    if not isinstance(schema, Mapping):
        return schema
    unions = {
        key: [_resolved(branch, shared) for branch in schema[key]]
        for key in ("anyOf", "oneOf")
        if isinstance(schema.get(key), list)
    }
    return {**shared, **schema, **unions}


def is_text(schema: Any) -> bool:
    """Whether a schema allows texts only, so that a value is written without quotes."""
    if not isinstance(schema, Mapping):
        return False
    if "enum" in schema or "const" in schema:
        return all(isinstance(value, str) for value in schema.get("enum", [schema.get("const")]))
    return schema.get("type") == "string"


def arguments_reader(kind: Arguments, schema: Mapping[str, Any]) -> ArgumentsReader:
    """The reader for a format's arguments. schema: the JSON schema of the tool's parameters."""
    if kind == "json":
        return JsonArguments()
    return PythonArguments() if kind == "python" else XmlArguments(schema)
