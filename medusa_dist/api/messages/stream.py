"""MessageEvents: the streaming events of a message, made of the chunks of a chat completion.

Owns their order. Not here: Message objects and blocks (from_chat.py), the wire format (api/sse.py).
message_start; for each block content_block_start, its deltas, content_block_stop; message_delta, message_stop. Blocks
follow one another, they never overlap.
"""

from collections.abc import Iterator
from typing import Any

from medusa_dist.api.convert import Failure
from medusa_dist.api.messages import from_chat
from medusa_dist.api.messages.errors import messages_error
from medusa_dist.api.translation.answer_form import Event
from medusa_dist.api.translation.chat_fields import steps_of


class MessageEvents:
    """The events of one message."""

    def __init__(self) -> None:
        self.keep_alive: Event | None = {"type": "ping"}
        self._has_begun = False
        self._usage: dict[str, Any] = {}
        self._stopped: dict[str, Any] = {}
        self._index = 0  # of the block that is open, or of the next one
        self._kind: str | None = None  # of the block that is open
        self._call: int | None = None  # the index of its call, if it is one
        self._steps: list[Any] = []  # that no event had yet

    def chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        """The events that follow from a chunk."""
        self._usage = chunk["usage"]
        if not self._has_begun:
            self._has_begun = True
            yield {"type": "message_start", "message": from_chat.opened(chunk, chunk["usage"])}
        for choice in chunk["choices"]:
            delta = choice["delta"]
            self._steps += steps_of(choice)
            if delta.get("reasoning_content"):
                yield from self._open(from_chat.thinking_block("", ""))
                yield self._delta("thinking_delta", thinking=delta["reasoning_content"])
            if delta.get("content"):
                yield from self._open(from_chat.text_block(""))
                yield self._delta("text_delta", text=delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._tool_call(call)
            if choice["finish_reason"] is not None:
                self._stopped = from_chat.stopped(choice)

    def end(self) -> Iterator[Event]:
        """The events after the last chunk."""
        yield from self._close()
        usage = from_chat.usage_of(self._usage)
        yield {"type": "message_delta", "delta": self._stopped, "usage": usage, **self._new_steps()}
        yield {"type": "message_stop"}

    def error(self, failure: Failure) -> Iterator[Event]:
        """The event that ends a stream that failed."""
        yield messages_error(failure.status, failure.body, failure.headers["x-request-id"])

    def _tool_call(self, call: dict[str, Any]) -> Iterator[Event]:
        """A part of a tool call: with its id and name at its start, else more arguments."""
        if self._kind != "tool_use" or self._call != call["index"]:
            yield from self._close()
            self._call = call["index"]
            yield from self._open(from_chat.tool_use_block(call["id"], call["function"]["name"], {}))
        if call["function"].get("arguments"):
            yield self._delta("input_json_delta", partial_json=call["function"]["arguments"])

    def _delta(self, kind: str, **fields: Any) -> Event:
        delta = {"type": kind, **fields}
        return {"type": "content_block_delta", "index": self._index, "delta": delta, **self._new_steps()}

    def _new_steps(self) -> dict[str, Any]:
        """The field steps of an event, if there are any that no event had."""
        steps, self._steps = self._steps, []
        return {"steps": steps} if steps else {}

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        """Begin a block, unless one of this kind is open."""
        if self._kind == block["type"]:
            return
        yield from self._close()
        self._kind = block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[Event]:
        """End the open block, if there is one."""
        if self._kind is None:
            return
        if self._kind == "thinking":
            yield self._delta("signature_delta", signature=from_chat.SIGNATURE)
        yield {"type": "content_block_stop", "index": self._index}
        self._index, self._kind = self._index + 1, None
