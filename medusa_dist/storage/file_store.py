"""FileStore: the files of /v1/files, by tenant.

Owns their records, limits and expiry. Not here: how bytes get there (folder.py), batches (batch_store.py).
A file is `tenants/<tenant>/files/<id>.data`, and exists once `<id>.json` is beside it.
"""

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Literal

from medusa_dist.errors import BodyTooLargeError, NotFoundError, RequestError
from medusa_dist.storage.folder import Folder
from medusa_dist.storage.pages import Order, Page, is_id, new_id, page

PREFIX = "file-"
TENANTS = "tenants"
Purpose = Literal["batch", "batch_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file. bytes: its size. Times are unix seconds; expires_at: None = never."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    expires_at: int | None = None

    def public(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {"object": "file", **asdict(self), "status": "processed", "status_details": None}


class FileStore:
    """max_file_bytes, max_total_bytes: the config keys."""

    def __init__(
        self, folder: Folder, max_file_bytes: int, max_total_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.max_file_bytes = max_file_bytes
        self._max_total_bytes = max_total_bytes
        self._clock = clock

    def upload(
        self, tenant: str, filename: str, data: Iterable[bytes], size: int, expires_after_s: int | None = None
    ) -> FileRecord:
        """Keep a client's file. size: of the data. Raises BodyTooLargeError, RequestError or StorageError."""
        if size > self.max_file_bytes:
            raise too_large(self.max_file_bytes)
        with self.folder.exclusive():
            used = self.folder.num_bytes()
            if used + size > self._max_total_bytes:
                raise RequestError(
                    f"the store has {used} bytes and takes {self._max_total_bytes} (files.max_total_bytes), so there "
                    f"is no room for {size} more; delete files that are no longer needed",
                    "file",
                    "storage_limit_exceeded",
                )
            return self.write(tenant, new_id(PREFIX, self._clock()), filename, "batch", data, expires_after_s)

    def write(
        self,
        tenant: str,
        file_id: str,
        filename: str,
        purpose: Purpose,
        data: Iterable[bytes],
        expires_after_s: int | None = None,
    ) -> FileRecord:
        """Write a file under an id, again if need be, without a look at the limits."""
        size = self.folder.write(f"{TENANTS}/{tenant}/files/{file_id}.data", data)
        now = int(self._clock())
        record = FileRecord(
            id=file_id,
            bytes=size,
            created_at=now,
            filename=filename,
            purpose=purpose,
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        self.folder.write(f"{TENANTS}/{tenant}/files/{file_id}.json", [json.dumps(asdict(record)).encode()])
        return record

    def get(self, tenant: str, file_id: str) -> FileRecord:
        """A file's record. Raises NotFoundError for one that does not exist, has expired, or is another tenant's."""
        record = self._load(tenant, file_id)
        if record is None or self._is_over(record):
            raise NotFoundError(f"No such File object: {file_id[:100]}", "id")
        return record

    def listed(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, order: Order
    ) -> Page[FileRecord]:
        """A page of a tenant's files, by the time of their creation. purpose: None = any."""

        def load(file_id: str) -> FileRecord | None:
            record = self._load(tenant, file_id)
            counts = record is not None and not self._is_over(record) and purpose in (None, record.purpose)
            return record if counts else None

        return page(self._ids(tenant), load, after=after, limit=limit, order=order)

    def open(self, tenant: str, file_id: str) -> BinaryIO:
        """The content, also of a file that has expired but is not deleted yet. Raises FileNotFoundError."""
        return self.folder.open(f"{TENANTS}/{tenant}/files/{file_id}.data")

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file: first the record, so that none is without content."""
        self.folder.delete(f"{TENANTS}/{tenant}/files/{file_id}.json")
        self.folder.delete(f"{TENANTS}/{tenant}/files/{file_id}.data")

    def sweep(self, in_use: Callable[[str, str], bool]) -> None:
        """Delete files that have expired, and remains of killed processes. in_use: (tenant, id); these stay."""
        self.folder.sweep()
        for tenant in self.folder.names(TENANTS):
            for file_id in self._ids(tenant):
                record = self._load(tenant, file_id)
                if record is not None and self._is_over(record) and not in_use(tenant, file_id):
                    self.delete(tenant, file_id)

    def _ids(self, tenant: str) -> list[str]:
        names = self.folder.names(f"{TENANTS}/{tenant}/files")
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def _load(self, tenant: str, file_id: str) -> FileRecord | None:
        if is_id(PREFIX, file_id):
            with suppress(FileNotFoundError), self.folder.open(f"{TENANTS}/{tenant}/files/{file_id}.json") as file:
                return FileRecord(**json.loads(file.read()))
        return None

    def _is_over(self, record: FileRecord) -> bool:
        return record.expires_at is not None and record.expires_at <= self._clock()


def too_large(max_bytes: int) -> BodyTooLargeError:
    """The error for an upload that is larger than the limit."""
    return BodyTooLargeError(
        f"the file has more than {max_bytes} bytes, the limit of this service (files.max_file_bytes); split it", "file"
    )
