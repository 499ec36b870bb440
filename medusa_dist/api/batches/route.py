"""The routes of OpenAI's Batch API.

Owns their paths. Not here: what runs batches (worker.py), where they are kept (storage/).
"""

from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request

from medusa_dist.api.batches.schema import BatchRequest, window_s
from medusa_dist.api.files.route import GetStore, list_body, tenant
from medusa_dist.errors import NotFoundError, RequestError
from medusa_dist.storage.batch_record import BatchRecord
from medusa_dist.storage.batch_store import PREFIX
from medusa_dist.storage.pages import new_id
from medusa_dist.storage.store import Store

MAX_LISTED = 100


def add_batches(app: FastAPI, get_store: GetStore) -> None:
    """Add the routes. get_store: raises StorageError where there is none."""

    @app.post("/v1/batches")
    async def create(body: BatchRequest, request: Request) -> dict[str, Any]:
        """Create a batch of the lines of a file."""
        return (await run_sync(_create, get_store(), body, tenant(request))).public()

    @app.get("/v1/batches")
    async def listed(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20
    ) -> dict[str, Any]:
        """List batches, newest first."""
        page = await run_sync(partial(get_store().batches.listed, tenant(request), after=after, limit=limit))
        return list_body([batch.public() for batch in page.entries], page.has_more)

    @app.get("/v1/batches/{batch_id}")
    async def retrieve(batch_id: str, request: Request) -> dict[str, Any]:
        """Return a batch."""
        return (await run_sync(get_store().batches.get, tenant(request), batch_id)).public()

    @app.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str, request: Request) -> dict[str, Any]:
        """Cancel a batch. Lines that are finished stay in its output file."""
        return (await run_sync(get_store().batches.cancel, tenant(request), batch_id)).public()


def _create(store: Store, body: BatchRequest, mine: str) -> BatchRecord:
    try:
        file = store.files.get(mine, body.input_file_id)
    except NotFoundError as error:
        raise RequestError(error.message, "input_file_id", "invalid_value") from None
    if file.purpose != "batch":
        raise RequestError(
            f"{file.id} has purpose {file.purpose}; an input file has purpose batch", "input_file_id", "invalid_value"
        )
    now = store.batches.clock()
    expiry = body.output_expires_after
    batch = BatchRecord(
        id=new_id(PREFIX, now),
        tenant=mine,
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=int(now),
        expires_at=int(now) + window_s(body.completion_window),
        metadata=body.metadata,
        output_expires_after_s=None if expiry is None else expiry.seconds,
    )
    store.batches.create(batch)
    return batch
