"""Errors of the layers around the routes as HTTP responses, and JSON in ASCII.

Owns the response to an exception that leaves the routes or a layer. Not here: the mapping to status and body
(api/convert.py), errors inside the routes (api/routes.py), errors after a stream has begun (api/sse.py).
"""

import json
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_dist.api.convert import failure
from medusa_dist.api.messages.errors import messages_error, speaks_anthropic


class Json(JSONResponse):
    """JSON in ASCII: an error may repeat client input that is not valid Unicode."""

    def render(self, content: Any) -> bytes:
        """The encoded body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def request_id(scope: Scope) -> str:
    """The request id of this ASGI scope."""
    return str(scope.get("state", {}).get("request_id", "unknown"))


def error_response(error: Exception, scope: Scope) -> Response:
    """The response to an exception, in the shape of the API that the request is for."""
    found = failure(error, request_id(scope))
    body = messages_error(found.status, found.body, request_id(scope)) if speaks_anthropic(scope) else found.body
    return Json(body, found.status, found.headers)


class Failures:
    """Responds to every exception of the layers inside it. Raises it again if the response has begun.

    Starlette's own handler of unexpected errors is outside of all layers, so its responses would lack their headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if has_begun:
                raise
            await error_response(error, scope)(scope, receive, send)
