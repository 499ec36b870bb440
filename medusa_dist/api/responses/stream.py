"""ResponseEvents: the streaming events of a response, made of the chunks of a chat completion.

Owns their order. Not here: Response objects and items (from_chat.py), the wire format (api/sse.py).
response.created, response.in_progress; for each item output_item.added, what belongs to its kind, output_item.done; one
of response.completed, response.incomplete, response.failed. Items follow one another, they never overlap.
"""

from collections.abc import Iterator
from typing import Any

from medusa_dist.api.convert import Failure
from medusa_dist.api.responses import from_chat
from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.translation.answer_form import Event
from medusa_dist.api.translation.chat_fields import steps_of

MESSAGE, REASONING, CALL = "message", "reasoning", "function_call"
_DELTAS = {
    MESSAGE: "response.output_text",
    REASONING: "response.reasoning_text",
    CALL: "response.function_call_arguments",
}


class ResponseEvents:
    """The events of one response."""

    def __init__(self, request: ResponsesRequest) -> None:
        self.keep_alive: Event | None = None  # this API has none
        self._request = request
        self._head: dict[str, Any] | None = None
        self._ident = ""
        self._num_events = 0
        self._usage: dict[str, Any] = {}
        self._status = from_chat.COMPLETED
        self._items: list[dict[str, Any]] = []  # that are done
        self._kind: str | None = None  # of the item that is open
        self._text = ""  # of that item; a call's is its arguments
        self._call: dict[str, Any] = {}  # id, name and index of the call that is open
        self._logprobs: list[Any] = []  # of the tokens since the last message
        self._num_sent_logprobs = 0
        self._steps: list[Any] = []  # of all chunks
        self._num_sent_steps = 0

    def chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        """The events that follow from a chunk."""
        if self._head is None:
            self._head, self._ident = from_chat.opened(self._request, chunk), from_chat.ident_of(chunk)
            yield self._event("response.created", response=self._head)
            yield self._event("response.in_progress", response=self._head)
        self._usage = chunk["usage"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            self._steps += steps_of(choice)
            self._logprobs += (choice.get("logprobs") or {}).get("content") or []
            if delta.get("reasoning_content"):
                yield from self._open(REASONING)
                yield self._delta(delta["reasoning_content"])
            if delta.get("content"):
                yield from self._open(MESSAGE)
                yield self._delta(delta["content"], logprobs=self._new_logprobs())
            for call in delta.get("tool_calls") or ():
                yield from self._tool_call(call)
            if choice["finish_reason"] is not None:
                self._status = from_chat.status_of(choice["finish_reason"])

    def end(self) -> Iterator[Event]:
        """The events after the last chunk."""
        assert self._head is not None, "a chat completion has at least one chunk"
        kinds = {item["type"] for item in self._items} | {self._kind}
        if not kinds & {MESSAGE, CALL} and not (REASONING in kinds and self._status == from_chat.INCOMPLETE):
            yield from self._open(MESSAGE)  # an empty one, as there is in an answer that is not streamed
        yield from self._close(self._status)
        response = from_chat.ended(self._head, self._items, self._status, self._usage, self._steps)
        yield self._event(f"response.{self._status}", response=response)

    def error(self, failure: Failure) -> Iterator[Event]:
        """The event that ends a stream that failed."""
        error = failure.body["error"]
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        if self._head is None:
            yield self._event("error", code=code, message=error["message"], param=error["param"])
            return
        failed = {"status": from_chat.FAILED, "error": {"code": code, "message": error["message"]}}
        yield self._event("response.failed", response=self._head | failed | {"output": self._items})

    def _event(self, kind: str, **fields: Any) -> Event:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _item_event(self, kind: str, **fields: Any) -> Event:
        """An event about the open item."""
        item_id = self._item(from_chat.IN_PROGRESS)["id"]
        return self._event(kind, item_id=item_id, output_index=len(self._items), **fields)

    def _item(self, status: str) -> dict[str, Any]:
        """The open item with the text that it has by now."""
        ident = f"{self._ident}_{len(self._items)}"
        if self._kind == REASONING:
            return from_chat.reasoning_item(ident, self._text, status)
        if self._kind == MESSAGE:
            return from_chat.message_item(ident, self._text, self._logprobs, status)
        return from_chat.call_item(ident, self._call["id"], self._call["name"], self._text, status)

    def _new_logprobs(self) -> list[Any]:
        new, self._num_sent_logprobs = self._logprobs[self._num_sent_logprobs :], len(self._logprobs)
        return new

    def _delta(self, text: str, **fields: Any) -> Event:
        assert self._kind is not None
        self._text += text
        content = {} if self._kind == CALL else {"content_index": 0}
        new, self._num_sent_steps = self._steps[self._num_sent_steps :], len(self._steps)
        steps = {"steps": new} if new else {}
        return self._item_event(f"{_DELTAS[self._kind]}.delta", **content, delta=text, **fields, **steps)

    def _tool_call(self, call: dict[str, Any]) -> Iterator[Event]:
        """A part of a tool call: with its id and name at its start, else more arguments."""
        if self._kind != CALL or self._call["index"] != call["index"]:
            yield from self._close(from_chat.COMPLETED)
            self._call = {"index": call["index"], "id": call["id"], "name": call["function"]["name"]}
            yield from self._open(CALL)
        if call["function"].get("arguments"):
            yield self._delta(call["function"]["arguments"])

    def _open(self, kind: str) -> Iterator[Event]:
        """Begin an item, unless one of this kind is open."""
        if self._kind == kind:
            return
        yield from self._close(from_chat.COMPLETED)
        self._kind, self._text = kind, ""
        item = self._item(from_chat.IN_PROGRESS)
        if kind != CALL:
            item["content"] = []
        yield self._event("response.output_item.added", output_index=len(self._items), item=item)
        if kind != CALL:
            yield self._item_event("response.content_part.added", content_index=0, part=self._part([]))

    def _part(self, logprobs: list[Any]) -> dict[str, Any]:
        if self._kind == REASONING:
            return from_chat.reasoning_part(self._text)
        return from_chat.text_part(self._text, logprobs)

    def _close(self, status: str) -> Iterator[Event]:
        """End the open item, if there is one."""
        if self._kind is None:
            return
        done = f"{_DELTAS[self._kind]}.done"
        item = self._item(status)
        if self._kind == CALL:
            yield self._item_event(done, name=item["name"], arguments=self._text)
        else:
            logprobs = {"logprobs": self._logprobs} if self._kind == MESSAGE else {}
            yield self._item_event(done, content_index=0, text=self._text, **logprobs)
            yield self._item_event("response.content_part.done", content_index=0, part=self._part(self._logprobs))
        yield self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        if self._kind == MESSAGE:
            self._logprobs, self._num_sent_logprobs = [], 0
        self._kind = None
