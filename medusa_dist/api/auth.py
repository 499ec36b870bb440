"""API key check and x-request-id header: two ASGI layers around all routes.

Owns authentication and request ids. Not here: TLS and user accounts (a gateway's job).
Plain ASGI, because Starlette's BaseHTTPMiddleware hides client disconnects from streaming responses.
"""

import hashlib
import hmac
import re
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_dist.api.messages.errors import speaks_anthropic
from medusa_dist.errors import ConfigError, UnauthorizedError
from medusa_dist.storage.store import tenant_of

OPEN_PATHS = ("/health", "/ping", "/live")  # probes have no key, and learn no more than that the service is up
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ODD = re.compile(r"[^\x21-\x7e]")


def check_api_key(key: str) -> str:
    """The key, if it can be sent in a header. Raises ConfigError for a key that is set but unusable."""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError("api_key is set but unusable: use visible ASCII characters without spaces")
    return key


class ApiKey:
    """Refuses every request without the key, on any path except open_paths.

    Files and batches belong to the key that they came with (`tenant` in the scope's state).
    The key comes as `Authorization: Bearer <key>`, or as `x-api-key: <key>`, as clients of the Messages API send it.
    OPTIONS passes: browsers send it without a key, and no route answers it with more than the methods of a path.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self._app = app
        self._open_paths = frozenset(open_paths)
        self._digest = _digest(key)
        self._tenant = tenant_of(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "lifespan" or path in self._open_paths or scope.get("method") == "OPTIONS":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(_digest(given.strip()), self._digest):
            scope.setdefault("state", {})["tenant"] = self._tenant
            await self._app(scope, receive, send)
            return
        raise UnauthorizedError(
            "the API key is missing or wrong; send it as `Authorization: Bearer <key>` or `x-api-key: <key>`",
            None,
            "invalid_api_key",
        )


def _digest(text: str) -> bytes:
    # Digests have equal lengths, so the comparison time does not reveal the key's length.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class RequestId:
    """Uses the caller's x-request-id or creates one, and returns it with every response.

    behind_serve: Ray Serve's HTTP server has done so, outside of this application. It adds the header to every response
    and replaces none, so here the id is only taken from the request, and the header is left to Serve.
    Responses of Anthropic's API have it as request-id, too, where its clients look for it.
    """

    def __init__(self, app: ASGIApp, behind_serve: bool) -> None:
        self._app = app
        self._behind_serve = behind_serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        if not _SANE_ID.fullmatch(given):
            # What Serve returns to the client in any case is still the best to find it by in a log.
            given = _ODD.sub("?", given)[:128] if self._behind_serve else ""
        chosen = given or f"req-{uuid.uuid4().hex}"
        is_anthropic = speaks_anthropic(scope)
        scope.setdefault("state", {})["request_id"] = chosen

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                del headers["x-request-id"]
                if not self._behind_serve:
                    headers["x-request-id"] = chosen
                if is_anthropic:
                    headers["request-id"] = chosen
            await send(message)

        await self._app(scope, receive, with_id)
