"""API key check and x-request-id header: two ASGI layers around all routes.

Owns authentication and request ids. Not here: TLS and user accounts (a gateway's job).
Plain ASGI, because Starlette's BaseHTTPMiddleware hides client disconnects from streaming responses.
"""

import hashlib
import hmac
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_dist.api.convert import failure
from medusa_dist.errors import ConfigError, UnauthorizedError

OPEN_PATHS = ("/health",)
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def check_api_key(key: str) -> str:
    """The key, if it can be sent in a header. Raises ConfigError for a key that is set but unusable."""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError("api_key is set but unusable: use visible ASCII characters without spaces")
    return key


class ApiKey:
    """Responds 401 to every request without `Authorization: Bearer <key>`, on any path except OPEN_PATHS."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "lifespan" or path in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(token.strip()), self._digest):
            await self._app(scope, receive, send)
            return
        error = UnauthorizedError(
            "the API key is missing or wrong; send it as `Authorization: Bearer <key>`", None, "invalid_api_key"
        )
        response = failure(error, request_id(scope))
        await JSONResponse(response.body, response.status, response.headers)(scope, receive, send)


def _digest(text: str) -> bytes:
    # Digests have equal lengths, so the comparison time does not reveal the key's length.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class RequestId:
    """Uses the caller's x-request-id or creates one, and returns it with every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        chosen = given if _SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = chosen

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = chosen
            await send(message)

        await self._app(scope, receive, with_id)


def request_id(scope: Scope) -> str:
    """The request id of this ASGI scope."""
    return str(scope.get("state", {}).get("request_id", "unknown"))
