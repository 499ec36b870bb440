"""Server-sent events: the wire format of a streaming response.

Owns framing, keep-alive, and errors after the status line was sent. Not here: chunks (response_builder.py), events of
other APIs (translation/answer_form.py).
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from medusa_dist.api.call import Call, ClientGone
from medusa_dist.api.convert import Failure, failure
from medusa_dist.api.response_builder import ResponseBuilder
from medusa_dist.api.translation.answer_form import EventTranslator

KEEP_ALIVE_S = 15.0  # proxies commonly close an idle connection after 60 s
# One newline: widespread decoders take the blank line after a comment for the end of an event, which has no data.
KEEP_ALIVE = ": keep-alive\n"
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """One event. ASCII only: some clients split lines at U+2028 and similar, which JSON may contain unescaped."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def named_event(data: dict[str, Any]) -> str:
    """One event with its name, which is its `type`."""
    return f"event: {data['type']}\n{event(data)}"


class ChunkFrames:
    """The text of a stream whose events are the chunks themselves."""

    keep_alive = KEEP_ALIVE

    def chunk(self, chunk: dict[str, Any]) -> str:
        """For a chunk."""
        return event(chunk)

    def end(self) -> str:
        """After the last chunk."""
        return DONE

    def error(self, failed: Failure) -> str:
        """After an error, in place of the rest. [DONE], too: some clients wait for it."""
        return event(failed.body) + DONE


class NamedFrames:
    """The text of a stream whose events a translator makes of the chunks."""

    def __init__(self, translator: EventTranslator) -> None:
        self._translator = translator
        self.keep_alive = named_event(translator.keep_alive) if translator.keep_alive else KEEP_ALIVE

    def chunk(self, chunk: dict[str, Any]) -> str:
        """For a chunk."""
        return "".join(map(named_event, self._translator.chunk(chunk)))

    def end(self) -> str:
        """After the last chunk."""
        return "".join(map(named_event, self._translator.end()))

    def error(self, failed: Failure) -> str:
        """After an error, in place of the rest."""
        return "".join(map(named_event, self._translator.error(failed)))


Frames = ChunkFrames | NamedFrames


class EventStream(StreamingResponse):
    """A streaming response. Closes the call at its end, even if no byte was sent."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, builder: ResponseBuilder, first: str, request_id: str, frames: Frames) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would buffer chunks
        super().__init__(_events(call, builder, first, request_id, frames), headers=headers)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, then close the call."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._call.close()


async def open_stream(
    call: Call, builder: ResponseBuilder, request_id: str, translator: EventTranslator | None = None
) -> EventStream:
    """Wait for the first token, up to the first keep-alive, so that an early error still sets the status code."""
    frames = ChunkFrames() if translator is None else NamedFrames(translator)
    try:
        first = await _next_events(call, builder, frames)
    except BaseException:
        await call.close()
        raise
    return EventStream(call, builder, first, request_id, frames)


async def _next_events(call: Call, builder: ResponseBuilder, frames: Frames) -> str:
    got = await call.next(KEEP_ALIVE_S)
    return frames.keep_alive if got is None else "".join(map(frames.chunk, builder.chunks(*got)))


async def _events(
    call: Call, builder: ResponseBuilder, first: str, request_id: str, frames: Frames
) -> AsyncGenerator[str, None]:
    """One write per delta, then usage if requested and the end; or an error in place of the rest."""
    try:
        text = first
        while True:
            if text:
                yield text
            if not call.is_open:
                break
            text = await _next_events(call, builder, frames)
        yield "".join(map(frames.chunk, builder.last_chunks())) + frames.end()
    except ClientGone:
        return
    except Exception as error:  # noqa: BLE001 - `failure` logs errors that clients must not see
        yield frames.error(failure(error, request_id))
