"""Errors for a path or method that no route has, with the path that was probably meant.

Owns those two messages. Not here: extra slashes, which are accepted (paths.py), unknown models (api/convert.py).
"""

from collections.abc import Callable, Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match

BASE = "/v1"


def explain_route(request: Request, error: HTTPException) -> HTTPException:
    """The error with a message that says what to call instead; other errors unchanged."""
    scope = request.scope
    root: str = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"].removeprefix(root)

    def is_route(path: str) -> bool:
        asked = {**scope, "path": root + path}
        return any(route.matches(asked)[0] != Match.NONE for route in request.app.routes)

    if error.status_code == 404 and error.detail == "Not Found":
        paths = sorted({str(getattr(route, "path", "")) for route in request.app.routes})
        text = unknown_path(request.method, path, is_route, [p for p in paths if not p.startswith("/docs/")])
    elif error.status_code == 405:
        # Starlette names the methods of the first route with this path alone.
        found = [route for route in request.app.routes if route.matches(scope)[0] != Match.NONE]
        allowed = ", ".join(sorted({method for route in found for method in getattr(route, "methods", None) or ()}))
        text = f"{request.method} is not allowed on {path[:200]}; use {allowed}"
        return HTTPException(405, text, {**(error.headers or {}), "Allow": allowed})
    else:
        return error
    return HTTPException(error.status_code, text, error.headers)


def unknown_path(method: str, path: str, is_route: Callable[[str], bool], paths: list[str]) -> str:
    """The message for a path that no route has. is_route: whether a path is one; paths: those of all routes."""
    shown = f"there is no {method} {path[:200]}"
    for meant, hint in _guesses(path, paths):
        if is_route(meant):
            return f"{shown}; {hint}. The path is {meant}"
    return f"{shown}; the paths are {', '.join(paths)}"


def _guesses(path: str, paths: list[str]) -> Iterator[tuple[str, str]]:
    """Paths that may have been meant, and what the client has to change."""
    yield BASE + path, f"the base URL must end with {BASE}"
    doubled = f"{BASE}{BASE}/"
    if path.startswith(doubled):
        yield path.removeprefix(BASE), f"the base URL must end with {BASE} only once"
    yield path.removeprefix(BASE), f"this path is not below {BASE}"
    for end in (known.removeprefix(BASE) for known in paths if known.startswith(BASE)):
        if path.endswith(end) and path.removesuffix(end) in paths:
            yield BASE + end, f"the base URL must end with {BASE}, without the path of a route"
    start = path.rfind(f"{BASE}/")
    if start > 0:
        yield path[start:], f"the base URL must have nothing but {BASE} after the service's own address"
