"""Hook in Ray Serve's HTTP proxies: no HTTP/2 upgrades, and /live while there is no replica.

Owns what our service needs of the processes that accept connections. Not here: the routes (api/), which replicas run.
Serve calls `configure` in each proxy before it listens, if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH says so in the
environment in which Ray was started: `medusa-dist serve`, cluster/start_head.sh and cluster/kuberay/Dockerfile set it.
"""

import os
import uuid

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT_PATH = "medusa_dist.serve.http.proxy:configure"


def request_hook() -> None:
    """Let the Ray that this process starts call `configure`. A hook that is set already is kept."""
    os.environ.setdefault(VARIABLE, IMPORT_PATH)


def configure() -> list[Middleware]:
    """The layers around Serve's own, and h11 as its HTTP parser.

    Java's HttpClient and `curl --http2` offer an upgrade to h2c. A server may ignore it and respond in HTTP/1.1, which
    h11 does; httptools, uvicorn's choice otherwise, drops the body of such a request (uvicorn issue 2722).
    """
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    return [Middleware(Live)]


class Live:
    """Responds 200 to GET and HEAD of /live: this process accepts connections, whatever the replicas do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or scope["path"].rstrip("/") != "/live":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id") or f"req-{uuid.uuid4().hex}"
        await PlainTextResponse("live", headers={"x-request-id": request_id})(scope, receive, send)
