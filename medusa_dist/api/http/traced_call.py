"""Traces of HTTP calls that generate: a layer around all routes, and a Call that notes what its requests do.

Owns which calls are traced, and when things happen. Not here: what is noted (tracing/notes.py), spans
(tracing/spans.py).
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_dist.api.call import Call
from medusa_dist.api.http.paths import without_extra_slashes
from medusa_dist.api.service import Service
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.text.text_stream import TextDelta, TextStream
from medusa_dist.tracing.notes import RequestNotes
from medusa_dist.tracing.open_tracing import OpenCall, Tracer

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_KEY = "trace"  # in the scope's state


class Traced:
    """A span around each POST to ROUTES."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        route = without_extra_slashes(scope.get("path", "").removeprefix(scope.get("root_path", "")))
        if scope["type"] != "http" or scope["method"] != "POST" or route not in ROUTES:
            await self._app(scope, receive, send)
            return
        trace = self._tracer.call(route, scope["path"], Headers(scope=scope))
        state: dict[str, Any] = scope.setdefault("state", {})
        state[_KEY] = trace
        status: int | None = None

        async def with_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, with_status)
        except BaseException as error:
            trace.end(status, state.get("request_id"), type(error).__name__)
            raise
        trace.end(status, state.get("request_id"))


def make_call(
    service: Service, requests: Sequence[Request], streams: Sequence[TextStream], scope: Scope, is_chat: bool
) -> Call:
    """The call of an HTTP request; one that takes notes if it is traced."""
    trace: OpenCall | None = scope.get("state", {}).get(_KEY)
    if trace is None or not trace.is_recorded:
        return Call(service, requests, streams)
    operation = "chat" if is_chat else "text_completion"
    notes = [RequestNotes(request, service.name, operation) for request in requests]
    return TracedCall(service, requests, streams, notes, trace)


class TracedCall(Call):
    """Notes what happens to each request, and hands the notes over when the call is closed."""

    def __init__(
        self,
        service: Service,
        requests: Sequence[Request],
        streams: Sequence[TextStream],
        notes: Sequence[RequestNotes],
        trace: OpenCall,
    ) -> None:
        super().__init__(service, requests, streams)
        self._notes = list(notes)
        self._num_each = len(self.streams) // len(notes)
        self._trace = trace

    async def close(self) -> None:
        """Abort the requests that still run. Idempotent."""
        await super().close()
        notes, self._notes = self._notes, []
        for one in notes:
            self._trace.request(one)

    async def _decode(self, index: int) -> None:
        notes = self._notes[index]
        notes.error = None  # an earlier attempt found no place
        try:
            await super()._decode(index)
        except Exception as error:
            notes.error = type(error).__name__
            raise

    async def _outputs(self, index: int) -> AsyncGenerator[Output, None]:
        notes = self._notes[index]
        async with aclosing(super()._outputs(index)) as outputs:
            async for output in outputs:
                notes.arrived(output)
                try:
                    yield output
                finally:
                    notes.delivered()

    def _push(self, choice: int, part: Output) -> TextDelta:
        notes, began = self._notes[choice // self._num_each], time.perf_counter()
        delta = super()._push(choice, part)
        notes.detokenize_s += time.perf_counter() - began
        notes.outcome = delta.finish_reason or notes.outcome
        return delta
