"""Server-sent events: the wire format of a streaming response.

Owns framing, keep-alive, and errors after the status line was sent. Not here: chunks (response_builder.py).
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from medusa_dist.api.call import Call, ClientGone
from medusa_dist.api.convert import failure
from medusa_dist.api.response_builder import ResponseBuilder

KEEP_ALIVE_S = 15.0  # proxies commonly close an idle connection after 60 s
# One newline: widespread decoders take the blank line after a comment for the end of an event, which has no data.
KEEP_ALIVE = ": keep-alive\n"
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """One event. ASCII only: some clients split lines at U+2028 and similar, which JSON may contain unescaped."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """A streaming response. Closes the call at its end, even if no byte was sent."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, builder: ResponseBuilder, first: str, request_id: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would buffer chunks
        super().__init__(_events(call, builder, first, request_id), headers=headers)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, then close the call."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._call.close()


async def open_stream(call: Call, builder: ResponseBuilder, request_id: str) -> EventStream:
    """Wait for the first token, up to the first keep-alive, so that an early error still sets the status code."""
    try:
        first = await _next_events(call, builder)
    except BaseException:
        await call.close()
        raise
    return EventStream(call, builder, first, request_id)


async def _next_events(call: Call, builder: ResponseBuilder) -> str:
    got = await call.next(KEEP_ALIVE_S)
    return KEEP_ALIVE if got is None else "".join(map(event, builder.chunks(*got)))


async def _events(call: Call, builder: ResponseBuilder, first: str, request_id: str) -> AsyncGenerator[str, None]:
    """One write per delta, usage if requested, [DONE]; or an error event, then [DONE]: some clients wait for it."""
    try:
        text = first
        while True:
            if text:
                yield text
            if not call.is_open:
                break
            text = await _next_events(call, builder)
        yield "".join(map(event, builder.last_chunks())) + DONE
    except ClientGone:
        return
    except Exception as error:  # noqa: BLE001 - `failure` logs errors that clients must not see
        yield event(failure(error, request_id).body) + DONE
