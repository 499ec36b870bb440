"""Paths and methods as clients send them: trailing and double slashes, and HEAD.

Owns both layers, which change a request before it is routed. Not here: paths that no route has (unknown_route.py).
No redirects: many clients do not send the body again, and none sends its key to another host name.
"""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def without_extra_slashes(path: str) -> str:
    """One slash between two parts and none at the end: /v1//models/ -> /v1/models."""
    single = re.sub("/{2,}", "/", path)
    return single.rstrip("/") or "/"


class PlainPaths:
    """Routes see paths without extra slashes. The part below which the application is mounted stays as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "http":
            root: str = scope.get("root_path", "")
            path: str = scope["path"]
            if not path.startswith(root):
                root = ""
            scope = {**scope, "path": root.rstrip("/") + without_extra_slashes(path[len(root) :])}
        await self._app(scope, receive, send)


class HeadAsGet:
    """Responds to HEAD with the status and headers of GET, and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, without_body)
