"""Uploads: a multipart form of bounded size, its file on the disk while it is read.

Owns the form of POST /v1/files and its checks. Not here: where the file is kept (storage/file_store.py). The limit for
other bodies (api/http/bodies.py) does not hold here, so nothing may be read before this is.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from medusa_dist.api.call import ClientGone
from medusa_dist.errors import ContentEncodingError, RequestError, StorageError
from medusa_dist.storage.file_store import too_large

CHUNK_BYTES = 2**20
FORM_BYTES = 64 * 1024  # of a form around its file
EXPIRES_MIN_S, EXPIRES_MAX_S = 3600, 30 * 86400  # OpenAI's
FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it was sent. data: at its start. size: in bytes. expires_after_s: None = never."""

    filename: str
    data: BinaryIO
    size: int
    expires_after_s: int | None

    def chunks(self) -> Iterator[bytes]:
        """The content."""
        while part := self.data.read(CHUNK_BYTES):
            yield part


@asynccontextmanager
async def read_upload(request: Request, max_bytes: int) -> AsyncIterator[Upload]:
    """The upload of a request; its temporary file is gone after the block.

    Raises RequestError for a form that is not valid, BodyTooLargeError for one beyond max_bytes, ClientGone, and
    StorageError if this machine has no room for the temporary file.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise ContentEncodingError(f"content-encoding {encoding[:80]!r} is not accepted for uploads; send it plain")
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError("an upload is a form: content-type multipart/form-data with the fields file and purpose")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes + FORM_BYTES:
        raise too_large(max_bytes)
    parser = MultiPartParser(request.headers, _bounded(request, max_bytes), max_files=1, max_fields=16)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(f"the form is not valid: {getattr(error, 'message', None) or error}") from None
    except ClientDisconnect:
        raise ClientGone from None
    except OSError as error:
        raise StorageError(f"this machine has no room for the upload while it is read: {error.strerror}") from None
    try:
        yield _upload(form, max_bytes)
    finally:
        await form.close()


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes + FORM_BYTES:
            raise too_large(max_bytes)
        yield part


def _upload(form: FormData, max_bytes: int) -> Upload:
    for name in form:
        if name not in FIELDS:
            raise RequestError(f"unknown field {name[:100]!r}; an upload has {', '.join(FIELDS)}", name[:100])
        if len(form.getlist(name)) > 1:
            raise RequestError(f"{name} is given more than once", name)
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise RequestError("file is required: a file with a name", "file", "missing_required_parameter")
    if purpose is None:
        raise RequestError("purpose is required; it is batch", "purpose", "missing_required_parameter")
    if purpose != "batch":
        raise RequestError(
            f"purpose must be batch, got {str(purpose)[:100]!r}: this service uses files for nothing else",
            "purpose",
            "invalid_value",
        )
    size = file.size or 0
    if size > max_bytes:
        raise too_large(max_bytes)
    expires = expires_after(form.get("expires_after[anchor]"), form.get("expires_after[seconds]"))
    return Upload(file.filename or "upload.jsonl", file.file, size, expires)


def expires_after(anchor: object, seconds: object, field: str = "expires_after") -> int | None:
    """The seconds after which a file is deleted, None for never. Raises RequestError for other values than OpenAI's."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise RequestError(f"{field}.anchor must be created_at", f"{field}.anchor", "invalid_value")
    text = str(seconds)
    if not re.fullmatch(r"\d{1,9}", text) or not EXPIRES_MIN_S <= int(text) <= EXPIRES_MAX_S:
        raise RequestError(
            f"{field}.seconds must be a whole number from {EXPIRES_MIN_S} to {EXPIRES_MAX_S}",
            f"{field}.seconds",
            "invalid_value",
        )
    return int(text)
