"""ChatTurns: the messages of a chat request, made of the parts of another API's conversation.

Owns which parts become one message. Not here: the parts themselves, and what the chat template makes of messages.
"""

import json
from collections.abc import Iterable
from typing import Any


class ChatTurns:
    """Messages of a chat request, under construction.

    System texts before everything else are one message, because many chat templates take no second one. Text parts stay
    parts: chat joins them as it joins its own.
    """

    def __init__(self) -> None:
        self._turns: list[dict[str, Any]] = []

    def system(self, texts: Iterable[str]) -> None:
        """Add texts of a system message."""
        is_leading = bool(self._turns) and all(turn["role"] == "system" for turn in self._turns)
        self._add("system", texts, joins=is_leading)

    def user(self, texts: Iterable[str], joins: bool = False) -> None:
        """Add texts of a user message. joins: to the last message, if that is the user's."""
        self._add("user", texts, joins)

    def tool(self, call_id: str, texts: Iterable[str]) -> None:
        """Add the result of a tool call."""
        self._turns.append({"role": "tool", "tool_call_id": call_id, "texts": list(texts)})

    def assistant(self, texts: Iterable[str] = (), joins: bool = True) -> None:
        """Add texts of an assistant message. joins: to the last message, if that is the assistant's."""
        self._add("assistant", texts, joins)

    def reasoning(self, text: str) -> None:
        """Add reasoning to the last message, which is the assistant's."""
        turn = self._turns[-1]
        turn["reasoning"] = [*turn.get("reasoning", ()), text]

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a tool call to the last message, which is the assistant's."""
        function = {"name": name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        turn = self._turns[-1]
        turn["tool_calls"] = [*turn.get("tool_calls", ()), call]

    @property
    def last(self) -> dict[str, Any]:
        """The last message so far; empty if there is none. texts: its text; reasoning, tool_calls: if it has any."""
        return self._turns[-1] if self._turns else {}

    def messages(self) -> list[dict[str, Any]]:
        """The messages, for the body of a chat request."""
        return [_message(turn) for turn in self._turns]

    def _add(self, role: str, texts: Iterable[str], joins: bool) -> None:
        if not (joins and self.last.get("role") == role):
            self._turns.append({"role": role, "texts": []})
        self._turns[-1]["texts"] += texts


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    texts: list[str] = turn["texts"]
    content: Any = [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)
    message = {"role": turn["role"], "content": content}
    if turn["role"] == "assistant" and not texts:
        message["content"] = None
    if turn.get("reasoning"):
        message["reasoning_content"] = "\n".join(turn["reasoning"])
    return message | {key: turn[key] for key in ("tool_calls", "tool_call_id") if key in turn}


def compact_json(value: Any) -> str:
    """JSON text of a value, in characters rather than escapes, as models write it."""
    return json.dumps(value, ensure_ascii=False)
