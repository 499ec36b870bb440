"""The page at `/`: static files that chat with the service and show how each token came about.

Owns which files there are, their headers, and who gets them. Not here: what the page does (data/page/), its data, which
comes over the public routes with the same key as any client's.
The page holds no secret and no data. It asks nothing of other hosts, and its policy forbids it to: scripts and styles
come from here alone, there is no inline code, and `require-trusted-types-for` makes turning text into HTML an error.
"""

import hashlib
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parents[2] / "data" / "page"
START = "index.html"
PREFIX = "/page/"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # an upgrade must not mix old and new files; the ETag keeps it cheap
}


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_shown(page: bool | None, has_key: bool, is_local: bool) -> bool:
    """Whether a caller gets the page. page: the config key; None: callers on this machine do, if there is no key."""
    return is_local and not has_key if page is None else page


def page_note(url: str, page: bool | None, has_key: bool) -> str:
    """What `medusa-dist serve` prints about the page of the service at url; "" if it is off as seen from here."""
    if not is_shown(page, has_key, is_loopback(urlsplit(url).hostname or "")):
        return ""
    return f"\nOpen {url}/ in a browser to chat, and to see who guessed each token.\n"


def page_files() -> list[str]:
    """Names of the files, the start page among them."""
    return sorted(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)


def open_paths(page: bool | None) -> tuple[str, ...]:
    """Paths that need no key: a browser sends none for what is typed into its address line."""
    return ("/", *(PREFIX + name for name in page_files())) if page else ()


def add_page(app: FastAPI, page: bool | None, has_key: bool) -> None:
    """Add the routes, unless the page is off for everybody. page: the config key. has_key: an API key is set."""
    if page is False:
        return

    @app.get("/", include_in_schema=False)
    async def start(request: Request) -> Response:
        """The page."""
        _check(request, page, has_key)
        asked = request.scope.get("raw_path", b"/").partition(b"?")[0].decode("latin-1")
        if not asked.endswith("/"):  # its files are relative to it, which works below any prefix
            return RedirectResponse(f"{asked.rpartition('/')[2]}/", 308, HEADERS)
        return _answer(request, START)

    @app.get(PREFIX + "{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        """A file of the page."""
        _check(request, page, has_key)
        if name == START or name not in page_files():
            raise HTTPException(404, f"the page has no file {name[:80]!r}")
        return _answer(request, name)


def _check(request: Request, page: bool | None, has_key: bool) -> None:
    """Raise a 404 that says how to get the page, if this caller does not."""
    is_passed_on = "x-forwarded-for" in request.headers or "forwarded" in request.headers
    is_local = request.client is not None and is_loopback(request.client.host) and not is_passed_on
    if not is_shown(page, has_key, is_local):
        raise HTTPException(404, "the page is not shown to other machines; the config key `page: true` turns it on")


def _answer(request: Request, name: str) -> Response:
    content, tag = _read(name)
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])


@cache
def _read(name: str) -> tuple[bytes, str]:
    content = (FOLDER / name).read_bytes()
    return content, f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
