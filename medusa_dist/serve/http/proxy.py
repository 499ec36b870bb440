"""Hook in Ray Serve's HTTP proxies: no HTTP/2 upgrades, /live without a replica, 503 at the end.

Owns what our service needs of the processes that accept connections. Not here: the routes (api/), which replicas run.
Serve calls `configure` in each proxy before it listens, if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH says so in the
environment in which Ray was started: `medusa-dist serve`, cluster/start_head.sh and cluster/kuberay/Dockerfile set it.
"""

import os
import uuid
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ENDING_VARIABLE = "MEDUSA_DIST_ENDING"
IMPORT_PATH = "medusa_dist.serve.http.proxy:configure"


def request_hook(ending: Path | None = None) -> None:
    """Let the Ray that this process starts call `configure`. A hook that is set already is kept.

    ending: a file that will exist once the service ends. Serve has no means to refuse new calls while open streams
    finish: it closes the port and cuts them, or removes the routes and answers 404.
    """
    os.environ.setdefault(VARIABLE, IMPORT_PATH)
    if ending is not None:
        os.environ[ENDING_VARIABLE] = str(ending)


def configure() -> list[Middleware]:
    """The layers around Serve's own, and h11 as its HTTP parser.

    Java's HttpClient and `curl --http2` offer an upgrade to h2c. A server may ignore it and respond in HTTP/1.1, which
    h11 does; httptools, uvicorn's choice otherwise, drops the body of such a request (uvicorn issue 2722).
    """
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    ending = os.environ.get(ENDING_VARIABLE)
    return [Middleware(Live), *([Middleware(Ending, file=Path(ending))] if ending else [])]


def _request_id(scope: Scope) -> str:
    return Headers(scope=scope).get("x-request-id") or f"req-{uuid.uuid4().hex}"


class Live:
    """Responds 200 to GET and HEAD of /live: this process accepts connections, whatever the replicas do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or scope["path"].rstrip("/") != "/live":
            await self._app(scope, receive, send)
            return
        await PlainTextResponse("live", headers={"x-request-id": _request_id(scope)})(scope, receive, send)


class Ending:
    """Responds 503 to new calls once a file exists. Streams that are open go on."""

    def __init__(self, app: ASGIApp, file: Path) -> None:
        self._app = app
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http" or not self._file.exists():
            await self._app(scope, receive, send)
            return
        headers = {"x-request-id": _request_id(scope), "retry-after": "1", "connection": "close"}
        text = "the service is shutting down"
        response: Response = PlainTextResponse(text, 503, headers)
        if scope["path"].rstrip("/") != "/health":
            error = {"message": text, "type": "server_error", "param": None, "code": None}
            response = JSONResponse({"error": error}, 503, headers)
        await response(scope, receive, send)
