"""Messages of a conversation and the parts of their content, as pydantic models.

Owns their types, and what the chat template gets of them. Not here: the rule for each key (fields.py), rendering
(text/chat_template.py). Clients send messages back that other services and libraries made, with keys of their own: null
is taken as absent, and labels are taken and dropped.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, model_validator

from medusa_dist.api.conditions import NULL, SET, conditions
from medusa_dist.api.schema.fields import (
    MESSAGE_FIELDS,
    PART_FIELDS,
    Rule,
    Use,
    document,
    refuse,
    refuse_other_types,
    refuse_unknown,
)
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.api.schema.tools import ReplayedCall
from medusa_dist.errors import RequestError

PART_TYPES = ("text", "input_text", "output_text")
PART_SEPARATOR = "\n"  # as in vLLM


class Replayed(Body):
    """Base of what clients send back. Fields are the honoured ones of `rules`; others are checked and dropped."""

    rules: ClassVar[Mapping[str, Rule]] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_the_rules(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        refuse_unknown(cls.rules, given, cls.place)
        try:
            refuse(cls.rules, given)
        except RequestError as error:
            raise RequestError(f"{cls.place}{error.message}", "messages", error.code) from None
        return {name: value for name, value in given.items() if cls.rules[name].use is Use.HONOURED}


class TextPart(Replayed):
    """A part of a message's content. Only text."""

    model_config = ConfigDict(json_schema_extra=document(PART_FIELDS))
    place = "messages[].content[]."
    rules = PART_FIELDS
    type: Literal["text", "input_text", "output_text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        return refuse_other_types(data, PART_TYPES, "content parts", "send text parts", "messages")


_EMPTY = {"enum": [None, ""]}
_NO_ANSWER = {"reasoning_content": _EMPTY, "reasoning": _EMPTY, "tool_calls": {"enum": [None, []]}}
_BY_ROLE = {
    "anyOf": [
        {"properties": {"role": {"const": "assistant"}, "tool_call_id": NULL}},
        {
            "properties": {"role": {"enum": ["system", "developer", "user"]}, "content": SET, "tool_call_id": NULL}
            | _NO_ANSWER,
            "required": ["content"],
        },
        {
            "properties": {"role": {"const": "tool"}, "content": SET, "tool_call_id": SET} | _NO_ANSWER,
            "required": ["content", "tool_call_id"],
        },
    ]
}


class ChatMessage(Replayed):
    """One message of a conversation."""

    model_config = ConfigDict(json_schema_extra=conditions(_BY_ROLE, after=document(MESSAGE_FIELDS)))
    place = "messages[]."
    rules = MESSAGE_FIELDS
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: list[ReplayedCall] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_function_role(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("role") == "function":
            raise RequestError("messages with role 'function' are not supported; use role 'tool'", "messages")
        return data

    @model_validator(mode="after")
    def _by_role(self) -> Self:
        if self.tool_call_id is not None and self.role != "tool":
            raise RequestError(f"messages[].tool_call_id belongs to role 'tool', not {self.role!r}", "messages")
        if self.role == "assistant":
            return self
        if self.content is None:
            raise RequestError(f"a message with role {self.role!r} needs content", "messages")
        if self.role == "tool" and self.tool_call_id is None:
            raise RequestError("a message with role 'tool' needs tool_call_id", "messages")
        for name in ("reasoning_content", "reasoning", "tool_calls"):
            if getattr(self, name):
                raise RequestError(f"messages[].{name} belongs to role 'assistant', not {self.role!r}", "messages")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return PART_SEPARATOR.join(part.text for part in self.content)
        return self.content or ""

    def turn(self) -> dict[str, Any]:
        """The message as the chat template gets it; keys without a value are left out. Raises RequestError."""
        reasoning = self.reasoning_content or self.reasoning
        options = {
            "name": self.name,
            "reasoning_content": reasoning,
            "tool_calls": [call.turn() for call in self.tool_calls or ()],
        }
        if self.tool_call_id is not None:  # some clients have no ids, and send an empty one
            options["tool_call_id"] = self.tool_call_id
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.text} | {
            key: value for key, value in options.items() if value or key == "tool_call_id"
        }


def linked(turns: Sequence[dict[str, Any]], id_length: int | None = None) -> Sequence[dict[str, Any]]:
    """The turns, changed in place: a tool's result has the name of its tool, which some templates need.

    id_length: the length of ids that the template accepts; longer ones are cut alike in calls and results.
    """
    names = {call["id"]: call["function"]["name"] for turn in turns for call in turn.get("tool_calls") or ()}
    for turn in turns:
        for call in turn.get("tool_calls") or ():
            call["id"] = _end_of(call["id"], id_length)
        if turn["role"] == "tool" and turn.get("tool_call_id") is not None:
            if turn["tool_call_id"] in names:
                turn.setdefault("name", names[turn["tool_call_id"]])
            turn["tool_call_id"] = _end_of(turn["tool_call_id"], id_length)
    return turns


def as_text(turns: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The turns, changed in place: arguments of calls as JSON text."""
    for turn in turns:
        for call in turn.get("tool_calls") or ():
            function = call["function"]
            call["function"] = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return turns


def _end_of(text: str, length: int | None) -> str:
    return text if length is None else text[-length:]
