"""BatchStore: the batches of /v1/batches, by tenant, and which of them are open.

Owns where records are, and who may write them: routes write a record once, and afterwards only the process that runs
batches does. A client's wish to cancel is a file of its own beside the record. Not here: states (batch_record.py).
`open/<tenant>.<batch>` marks a batch that is not over, and names its input.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from medusa_dist.errors import ConflictError, NotFoundError
from medusa_dist.storage.batch_record import BatchRecord, loads
from medusa_dist.storage.file_store import TENANTS, FileStore
from medusa_dist.storage.folder import Folder
from medusa_dist.storage.journal import Journal
from medusa_dist.storage.pages import Order, Page, is_id, page

PREFIX = "batch_"
ORPHAN_S = 3600.0  # after which a mark without a batch was left by a process that was killed between the two


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is not over."""

    tenant: str
    id: str
    input_file_id: str
    since: float


class BatchStore:
    """files: in the same folder. max_lines: the config key."""

    def __init__(
        self, folder: Folder, files: FileStore, max_lines: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.files = files
        self.max_lines = max_lines
        self.clock = clock

    def create(self, batch: BatchRecord) -> None:
        """Keep a new batch. First the mark: a batch without one would never run."""
        mark = {"input_file_id": batch.input_file_id, "since": self.clock()}
        self.folder.write(f"open/{batch.tenant}.{batch.id}", [json.dumps(mark).encode()])
        self.save(batch)

    def save(self, batch: BatchRecord) -> None:
        """Write a record."""
        self.folder.write(f"{_place(batch.tenant)}/{batch.id}.json", [batch.dumps()])

    def get(self, tenant: str, batch_id: str) -> BatchRecord:
        """A batch as clients see it. Raises NotFoundError for one that does not exist or is another tenant's."""
        batch = self.find(tenant, batch_id)
        if batch is None:
            raise NotFoundError(f"No batch found with id '{batch_id[:100]}'.", "batch_id")
        return batch

    def find(self, tenant: str, batch_id: str) -> BatchRecord | None:
        """A batch as clients see it: cancelling as soon as that was asked for, also while nobody runs batches."""
        batch = self.load(tenant, batch_id)
        if batch is not None and batch.status in ("validating", "in_progress"):
            asked_at = self.cancel_asked_at(tenant, batch_id)
            if asked_at is not None:
                return batch.to("cancelling", asked_at)
        return batch

    def load(self, tenant: str, batch_id: str) -> BatchRecord | None:
        """The record of a batch."""
        if is_id(PREFIX, batch_id):
            with suppress(FileNotFoundError), self.folder.open(f"{_place(tenant)}/{batch_id}.json") as file:
                return loads(file.read())
        return None

    def listed(self, tenant: str, *, after: str | None, limit: int, order: Order = "desc") -> Page[BatchRecord]:
        """A page of a tenant's batches, newest first."""
        names = self.folder.names(_place(tenant))
        ids = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return page(ids, lambda one: self.find(tenant, one), after=after, limit=limit, order=order)

    def cancel(self, tenant: str, batch_id: str) -> BatchRecord:
        """Ask for the end of a batch. Raises ConflictError for one that is over or whose output is being written."""
        batch = self.get(tenant, batch_id)
        if batch.status not in ("validating", "in_progress", "cancelling"):
            raise ConflictError(f"Cannot cancel a batch with status '{batch.status}'.", "batch_id")
        if batch.status != "cancelling":
            self.folder.write(f"{_place(tenant)}/{batch_id}.cancel", [str(self.clock()).encode()])
        return self.get(tenant, batch_id)

    def cancel_asked_at(self, tenant: str, batch_id: str) -> float | None:
        """When the end of a batch was asked for."""
        with suppress(FileNotFoundError), self.folder.open(f"{_place(tenant)}/{batch_id}.cancel") as file:
            return float(file.read())
        return None

    def open_batches(self) -> Iterator[OpenBatch]:
        """All batches that are not over, oldest first."""
        marks = [name.partition(".") for name in self.folder.names("open")]
        for tenant, _, batch_id in sorted(marks, key=lambda mark: mark[2]):
            with suppress(FileNotFoundError), self.folder.open(f"open/{tenant}.{batch_id}") as file:
                mark = json.loads(file.read())
                yield OpenBatch(tenant, batch_id, mark["input_file_id"], mark["since"])

    def uses(self, tenant: str, file_id: str) -> str | None:
        """The open batch that reads a file, or None."""
        users = (one.id for one in self.open_batches() if (one.tenant, one.input_file_id) == (tenant, file_id))
        return next(users, None)

    def journal(self, batch: BatchRecord) -> Journal:
        """The journal of a batch, for this process."""
        return Journal(self.folder, batch.id)

    def close(self, batch: BatchRecord) -> None:
        """A batch is over: remove all but its record. The mark goes last, so that a second attempt finds the rest."""
        self.journal(batch).remove()
        self.folder.delete(f"{_place(batch.tenant)}/{batch.id}.cancel")
        self.folder.delete(f"open/{batch.tenant}.{batch.id}")

    def drop_orphan(self, mark: OpenBatch) -> None:
        """Remove a mark that has no batch, unless that is being written."""
        if self.clock() - mark.since > ORPHAN_S:
            self.folder.delete(f"open/{mark.tenant}.{mark.id}")


def _place(tenant: str) -> str:
    return f"{TENANTS}/{tenant}/batches"
