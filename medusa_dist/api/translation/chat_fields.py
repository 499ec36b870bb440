"""Values of chat's fields, made of what other APIs say: tools, a choice, a format, a stream, a call.

Owns their form. Not here: messages (chat_turns.py), types and ranges (api/schema/).
"""

from collections.abc import Mapping
from typing import Any

# Answers are translated chunk by chunk, and events have the usage so far.
STREAM_OPTIONS = {"include_usage": True, "continuous_usage_stats": True}
# What answers have beyond other APIs' fields: those of a chat completion that say how to repeat and judge it.
NOTES = ("system_fingerprint", "seed", "acceptance", "warnings")


def chat_tool(name: str, parameters: Mapping[str, Any] | None, **labels: Any) -> dict[str, Any]:
    """A tool. labels: description and strict; None: not given."""
    function = given({"name": name, "parameters": parameters, **labels})
    return {"type": "function", "function": function}


def chosen_tool(name: str) -> dict[str, Any]:
    """A choice of one tool."""
    return {"type": "function", "function": {"name": name}}


def json_schema(schema: Mapping[str, Any], name: str | None, **labels: Any) -> dict[str, Any]:
    """A response format. labels: description and strict; None: not given."""
    return {"type": "json_schema", "json_schema": given({"name": name, "schema": schema, **labels})}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def steps_of(choice: Mapping[str, Any]) -> list[Any]:
    """The steps of a choice, if the request asked for them (`explain`), else none."""
    return list(choice.get("steps") or ())


def notes_of(chat: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The fields of NOTES, and more, that a chat completion or a chunk has."""
    return {name: chat[name] for name in (*NOTES, *more) if name in chat}
