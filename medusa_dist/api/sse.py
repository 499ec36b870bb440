"""Server-sent events: the text on the wire of a streamed answer.

Owns framing, keep-alive, and what happens to errors once the status line is out. Not here: chunks (answers.py).
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from medusa_dist.api.call import Call, ClientGone
from medusa_dist.api.convert import failure
from medusa_dist.api.response_builder import ResponseBuilder

KEEP_ALIVE_S = 15.0  # proxies commonly cut a silent connection after 60 s
KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """One event. ASCII only: some clients split lines at U+2028 and its like, which JSON may contain raw."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """A streamed answer. The call is closed with it, even if the first byte was never sent."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, answer: ResponseBuilder, first: str, request_id: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold chunks back
        super().__init__(_events(call, answer, first, request_id), headers=headers)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, then close the call."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._call.close()


async def open_stream(call: Call, answer: ResponseBuilder, request_id: str) -> EventStream:
    """Wait for the first token, so that a refusal still gets its own status, but not beyond the first keep-alive."""
    try:
        first = await _next_events(call, answer)
    except BaseException:
        await call.close()
        raise
    return EventStream(call, answer, first, request_id)


async def _next_events(call: Call, answer: ResponseBuilder) -> str:
    got = await call.next(KEEP_ALIVE_S)
    return KEEP_ALIVE if got is None else "".join(map(event, answer.chunks(*got)))


async def _events(call: Call, answer: ResponseBuilder, first: str, request_id: str) -> AsyncGenerator[str, None]:
    """First events, then one write per delta, usage if wanted, [DONE]; or an error event, and no [DONE]."""
    try:
        text = first
        while True:
            if text:
                yield text
            if not call.is_open:
                break
            text = await _next_events(call, answer)
        yield "".join(map(event, answer.last_chunks())) + DONE
    except ClientGone:
        return
    except Exception as error:  # noqa: BLE001 - `failure` logs what is not meant for the client
        yield event(failure(error, request_id).body)
