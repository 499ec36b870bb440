"""AnswerForm: the form of an answer in another API, made of a chat completion or of its chunks.

Owns the interface between the chat route and translations. Not here: the translations (api/responses/, api/messages/),
the wire format of a stream (api/sse.py).
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request, Response

from medusa_dist.api.convert import EncodedPrompt, Failure
from medusa_dist.api.schema.requests import ChatRequest
from medusa_dist.api.service import Service

Event = dict[str, Any]  # its name is its `type`


class EventTranslator(Protocol):
    """Turns the chunks of one chat completion into the events of another API, in order.

    The chunks must have continuous usage. keep_alive: an event that may be sent at any time; None: there is none.
    """

    keep_alive: Event | None

    def chunk(self, chunk: dict[str, Any]) -> Iterable[Event]:
        """The events that follow from a chunk."""

    def end(self) -> Iterable[Event]:
        """The events after the last chunk."""

    def error(self, failure: Failure) -> Iterable[Event]:
        """The events that end a stream that failed."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """whole: an answer of the other API, of a chat completion. events: a translator for one stream."""

    whole: Callable[[dict[str, Any]], dict[str, Any]]
    events: Callable[[], EventTranslator]


# Answers a chat request, in another form; and the prompt of a chat request. The chat route has both.
AnswerChat = Callable[[ChatRequest, Request, Service, AnswerForm], Awaitable[Response]]
PromptOfChat = Callable[[ChatRequest, Service], Awaitable[EncodedPrompt]]
