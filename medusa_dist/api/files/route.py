"""The routes of OpenAI's Files API.

Owns their paths. Not here: forms (upload.py), where files are kept (storage/).
"""

import mimetypes
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote, urlsplit

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request, Response
from starlette.responses import StreamingResponse

from medusa_dist.api.files.upload import CHUNK_BYTES, read_upload
from medusa_dist.errors import ConflictError, ForbiddenError, NotFoundError
from medusa_dist.storage.file_store import FileStore
from medusa_dist.storage.pages import Order
from medusa_dist.storage.store import NO_KEY, Store

GetStore = Callable[[], Store]
PATH = "/v1/files"
MAX_LISTED = 10_000
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "purpose": {"const": "batch"},
                        "expires_after[anchor]": {"const": "created_at"},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


def tenant(request: Request) -> str:
    """The tenant of a request, as the key check has found it."""
    return str(request.scope.get("state", {}).get("tenant", NO_KEY))


def is_upload(method: str, path: str) -> bool:
    """Whether a request is an upload, whose body this module reads and bounds itself."""
    return method == "POST" and path == PATH


def check_origin(request: Request, origins: Sequence[str]) -> None:
    """Raise ForbiddenError for an upload by a web page of another origin than this service's own and those listed.

    Browsers send forms anywhere without asking first, unlike JSON.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins and urlsplit(origin).netloc != request.headers.get("host"):
        raise ForbiddenError(f"pages of {origin[:200]!r} may not upload here; see http.cors_origins")


def add_files(app: FastAPI, get_store: GetStore, origins: Sequence[str]) -> None:
    """Add the routes. get_store: raises StorageError where there is none. origins: the key http.cors_origins."""

    @app.post(PATH, openapi_extra=_FORM)
    async def create(request: Request) -> dict[str, Any]:
        """Upload a file of batch lines."""
        check_origin(request, origins)
        files = get_store().files
        async with read_upload(request, files.max_file_bytes) as upload:
            keep = partial(files.upload, tenant(request), upload.filename, upload.chunks())
            record = await run_sync(keep, upload.size, upload.expires_after_s)
        return record.public()

    @app.get(PATH)
    async def listed(
        request: Request,
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
        order: Order = "desc",
    ) -> dict[str, Any]:
        """List files, newest first."""
        find = partial(
            get_store().files.listed, tenant(request), purpose=purpose, after=after, limit=limit, order=order
        )
        page = await run_sync(find)
        return list_body([record.public() for record in page.entries], page.has_more)

    _add_single(app, get_store)


def _add_single(app: FastAPI, get_store: GetStore) -> None:
    @app.get(PATH + "/{file_id}")
    async def retrieve(file_id: str, request: Request) -> dict[str, Any]:
        """Return what is known about a file."""
        return (await run_sync(get_store().files.get, tenant(request), file_id)).public()

    @app.delete(PATH + "/{file_id}")
    async def delete(file_id: str, request: Request) -> dict[str, Any]:
        """Delete a file. An input of a batch that is not over stays."""
        store, mine = get_store(), tenant(request)

        def remove() -> None:
            store.files.get(mine, file_id)
            user = store.batches.uses(mine, file_id)
            if user is not None:
                raise ConflictError(f"{file_id} is the input of {user}, which is not over; cancel that first", "id")
            store.files.delete(mine, file_id)

        await run_sync(remove)
        return {"id": file_id, "object": "file", "deleted": True}

    @app.get(PATH + "/{file_id}/content", response_class=Response, responses=_CONTENT)
    async def content(file_id: str, request: Request) -> Response:
        """Return the content of a file."""
        files, mine = get_store().files, tenant(request)
        record = await run_sync(files.get, mine, file_id)
        file = await run_sync(_opened, files, mine, file_id)
        kind = mimetypes.guess_type(record.filename)[0] or "application/octet-stream"
        named = f"attachment; filename*=UTF-8''{quote(record.filename, safe='', errors='replace')}"
        headers = {"content-length": str(record.bytes), "content-disposition": named}
        return StreamingResponse(_chunks(file), headers=headers, media_type=kind)


def list_body(entries: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list."""
    return {
        "object": "list",
        "data": entries,
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
        "has_more": has_more,
    }


def _opened(files: FileStore, mine: str, file_id: str) -> BinaryIO:
    try:
        return files.open(mine, file_id)
    except FileNotFoundError:  # deleted since
        raise NotFoundError(f"No such File object: {file_id[:100]}", "id") from None


async def _chunks(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    try:
        while part := await run_sync(file.read, CHUNK_BYTES):
            yield part
    finally:
        file.close()
