"""Request bodies: their size limit, Content-Encoding, and UTF-8.

Owns the layer that reads a body before anything parses it. Not here: JSON and its fields (api/schema/), uploads
(api/files/upload.py).
The limit holds for what is sent and for what it decodes to, so a small body cannot become a large one.
"""

import gzip
import zlib
from collections.abc import Callable
from io import BytesIO

import anyio.to_thread
import pyarrow
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medusa_dist.api.files.route import is_upload
from medusa_dist.errors import BodyTooLargeError, ContentEncodingError, RequestError

KEY = "http.max_body_bytes"
CLIENT_GONE = 499  # nginx's status for a client that disconnected; nobody reads it
UPGRADED = "the server does not speak HTTP/2 and its parser dropped the body of an upgrade request; use HTTP/1.1"


def _gunzip(data: bytes, size: int) -> bytes:
    with gzip.GzipFile(fileobj=BytesIO(data)) as file:
        return file.read(size)


def _inflate(data: bytes, size: int) -> bytes:
    """RFC 9110 means the zlib format; some clients send the bare stream."""
    try:
        return _inflated(zlib.decompressobj(), data, size)
    except zlib.error:
        return _inflated(zlib.decompressobj(-zlib.MAX_WBITS), data, size)


def _inflated(stream: "zlib._Decompress", data: bytes, size: int) -> bytes:
    found = stream.decompress(data, size)
    if len(found) < size and (not stream.eof or stream.unused_data):
        raise ValueError("the stream does not end with the body")
    return found


def _unzstd(data: bytes, size: int) -> bytes:
    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as file:
        return bytes(file.read(size))


# Each decodes at most so many bytes, and raises OSError, EOFError, ValueError or zlib.error for other data.
DECODERS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gunzip, "deflate": _inflate, "zstd": _unzstd}
ALIASES = {"x-gzip": "gzip"}


def encoding_of(header: str) -> str | None:
    """The decoder that a Content-Encoding names; None: not encoded. Raises ContentEncodingError for any other."""
    names = [name.strip().lower() for name in header.split(",")]
    names = [ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    if not names:
        return None
    if len(names) > 1 or names[0] not in DECODERS:
        raise ContentEncodingError(
            f"content-encoding {', '.join(names)[:80]!r} is not accepted; send the body plain, or with one of "
            f"{', '.join(DECODERS)}"
        )
    return names[0]


def decode(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decode a body; never makes more than max_bytes + 1 bytes.

    Raises RequestError for data in another format, BodyTooLargeError for data that decodes to more than max_bytes.
    """
    try:
        found = DECODERS[encoding](data, max_bytes + 1)
    except (OSError, EOFError, ValueError, zlib.error):
        raise RequestError(f"the body is not valid {encoding}, which its content-encoding says it is") from None
    if len(found) > max_bytes:
        raise _too_large(f"the body decodes to more than {max_bytes} bytes", max_bytes)
    return found


def check_utf8(data: bytes) -> None:
    """Raise RequestError, with the place, for a body that is not UTF-8, which JSON requires."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the body is not valid UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; JSON is sent in "
            "UTF-8 (is this text in Latin-1 or UTF-16, or compressed without a content-encoding header?)"
        ) from None


def _too_large(what: str, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"{what}; this service accepts {max_bytes} ({KEY}). Send less, or several calls")


class Bodies:
    """Gives the routes each body whole, decoded and within max_bytes, or responds 413, 415 or 400."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        # No route reads the body of GET or OPTIONS, and uploads are read with limits of their own.
        if scope["type"] != "http" or scope["method"] in ("GET", "OPTIONS") or is_upload(scope["method"], path):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise _too_large(f"the body has {int(length)} bytes", self._max_bytes)
        encoding = encoding_of(headers.get("content-encoding", ""))
        body = await self._read(receive)
        if body is None:
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
            return
        if not body and "upgrade" in headers and (length not in ("", "0") or "transfer-encoding" in headers):
            raise RequestError(UPGRADED)
        if encoding is not None:
            body = await anyio.to_thread.run_sync(decode, body, encoding, self._max_bytes)
        check_utf8(body)
        await self._app(_plain(scope, len(body)), _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client disconnects. Stops reading at the limit."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise _too_large(f"the body has more than {self._max_bytes} bytes", self._max_bytes)
            if not message.get("more_body", False):
                return b"".join(parts)


def _plain(scope: Scope, size: int) -> Scope:
    """The scope with headers that describe the decoded body."""
    plain = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=plain)
    for name in ("content-encoding", "transfer-encoding"):
        del headers[name]
    headers["content-length"] = str(size)
    return plain


def _replay(body: bytes, receive: Receive) -> Receive:
    """An ASGI receive that gives the body, and then what follows it: the disconnect."""
    is_read = False

    async def once() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
