"""ChatMessageBuilder: the assistant's message of one choice, whole and as stream deltas.

Owns their form: content, reasoning_content, tool_calls. Not here: splitting the text (text/tools/answer_reader.py), the
chunks around deltas (response_builder.py).
"""

import secrets
import string
from typing import Any

from medusa_dist.text.tools.parts import CallArguments, CallStart, Content, Part, PartReader, Reasoning

_ALPHABET = string.ascii_letters + string.digits
Delta = dict[str, Any]


class ChatMessageBuilder:
    """Takes the visible text of one choice, in order.

    has_reasoning: the message has the field reasoning_content; else the reasoning is left out. id_length: letters and
    digits in the ids of calls, after "call_"; 9: an id of just nine, which Mistral's templates demand.
    """

    def __init__(self, reader: PartReader, has_reasoning: bool = False, id_length: int = 24) -> None:
        self._reader = reader
        self._has_reasoning = has_reasoning
        self._id_length = id_length
        self._reasoning = ""
        self._content = ""
        self._calls: list[dict[str, Any]] = []

    @property
    def has_calls(self) -> bool:
        """Whether the message has a tool call, complete or not."""
        return bool(self._calls)

    def push(self, text: str, is_last: bool) -> list[Delta]:
        """The deltas of more text; is_last: no text follows. A delta has one kind of field."""
        deltas: list[Delta] = []
        for part in self._reader.feed(text, is_last):
            self._add(deltas, part)
        return deltas

    def message(self) -> dict[str, Any]:
        """The whole message. content is null if there are only calls."""
        content = self._content if self._content or not self._calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._has_reasoning:
            message["reasoning_content"] = self._reasoning or None
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def _add(self, deltas: list[Delta], part: Part) -> None:
        match part:
            case Reasoning(text):
                self._reasoning += text
                if self._has_reasoning:
                    deltas.append({"reasoning_content": text})
            case Content(text):
                self._content += text
                deltas.append({"content": text})
            case CallStart(index, name):
                call: dict[str, Any] = {"id": self._new_id(), "type": "function"}
                self._calls.append({**call, "function": {"name": name, "arguments": ""}})
                deltas.append({"tool_calls": [{"index": index, **call, "function": {"name": name, "arguments": ""}}]})
            case CallArguments(index, text):
                self._calls[index]["function"]["arguments"] += text
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": text}}]})

    def _new_id(self) -> str:
        name = "".join(secrets.choice(_ALPHABET) for _ in range(self._id_length))
        return name if self._id_length < 24 else f"call_{name}"
