"""RemoteFolder: the store at a URL of fsspec, such as s3://bucket/path.

Owns atomic writes there, and a lease in place of a lock. Not here: folders of this machine (folder.py).
A store of objects shows a new object when all of it is there; anything else gets a temporary name first.
"""

import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import fsspec

from medusa_dist.errors import ConfigError, StorageError
from medusa_dist.storage.folder import STALE_S, TMP

WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "hf"}
SPOOL_BYTES = 8 * 2**20
COPY_BYTES = 2**20
LEASE = "worker.lease"
LEASE_S = 60.0
SETTLE_S = 3.0  # between writing a lease and reading it again: another process may have written one, too


class RemoteFolder:
    """url: of fsspec, with its protocol. Raises ConfigError for a protocol that is unknown or needs a package."""

    appends = False
    poll_s = 5.0

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"files.store: {url!r} cannot be used: {error}") from None
        protocols = self._files.protocol
        self._is_whole = bool(WHOLE_OBJECTS & set([protocols] if isinstance(protocols, str) else protocols))
        self._url = url
        self._uploads = threading.Lock()

    def __str__(self) -> str:
        return self._url

    def write(self, name: str, data: Iterable[bytes]) -> int:
        """See Folder."""
        target = self._path(name)
        first = target if self._is_whole else self._path(f"{TMP}/{uuid.uuid4().hex}")
        # First to this machine: an object whose writer raises would be kept as far as it came.
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as whole:
            size = sum(map(whole.write, data))
            whole.seek(0)
            with self._says("write"):
                for path in {target, first}:
                    self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                with self._files.open(first, "wb") as file:
                    shutil.copyfileobj(whole, file, COPY_BYTES)
                if first != target:
                    self._files.mv(first, target)
        return size

    def append(self, name: str, data: bytes) -> None:
        """See Folder."""
        raise NotImplementedError("objects at a URL cannot be appended to")

    def open(self, name: str) -> BinaryIO:
        """See Folder."""
        with self._says("read"):
            file: BinaryIO = self._files.open(self._path(name), "rb")
            return file

    def delete(self, name: str) -> None:
        """See Folder."""
        with self._says("delete from"), suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """See Folder."""
        with self._says("delete from"), suppress(FileNotFoundError):
            self._files.rm(self._path(name), recursive=True)

    def names(self, folder: str) -> list[str]:
        """See Folder."""
        with self._says("read"):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found} - {""})

    def num_bytes(self) -> int:
        """See Folder."""
        with self._says("read"):
            self._files.invalidate_cache()
            found = self._files.find(self._root, detail=True)
        return sum(int(about.get("size") or 0) for about in found.values())

    def alone(self) -> "Lease":
        """See Folder."""
        return Lease(self)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other thread of this process; other processes may be, so that limits are kept up to a file of each."""
        with self._uploads:
            yield

    def sweep(self) -> None:
        """See Folder."""
        with self._says("read"):
            for name in self.names(TMP):
                path = self._path(f"{TMP}/{name}")
                try:
                    if time.time() - self._files.modified(path).timestamp() > STALE_S:
                        self._files.rm_file(path)
                except (NotImplementedError, FileNotFoundError):
                    continue

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _says(self, verb: str) -> Iterator[None]:
        """Every file system of fsspec has errors of its own."""
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except Exception as error:
            why = str(error) or type(error).__name__
            raise StorageError(f"cannot {verb} the store of files (files.store): {why[:300]}") from error


class Lease:
    """A lock where there are none: a file that says who has it and until when, renewed while it is used.

    Clocks of the machines may differ by less than LEASE_S / 2. Should two processes hold it at once all the same, work
    is done twice, and no line occurs twice in an output (journal.py).
    """

    def __init__(
        self,
        folder: RemoteFolder,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder, self._clock, self._pause = folder, clock, pause
        self._me = uuid.uuid4().hex
        self._renewed_at = 0.0

    def acquire(self) -> bool:
        """See Lock. Takes SETTLE_S if nobody has it."""
        held = self._read()
        if held.get("by") not in (None, self._me) and float(held.get("until", 0)) > self._clock():
            return False
        self._write()
        self._pause(SETTLE_S)
        return self._read().get("by") == self._me

    def renew(self) -> bool:
        """See Lock."""
        if self._clock() - self._renewed_at < LEASE_S / 4:
            return True
        if self._read().get("by") != self._me:
            return False
        self._write()
        return True

    def release(self) -> None:
        """See Lock."""
        if self._read().get("by") == self._me:
            self._folder.delete(LEASE)

    def _read(self) -> dict[str, Any]:
        try:
            with self._folder.open(LEASE) as file:
                found = json.loads(file.read())
        except (FileNotFoundError, ValueError):
            return {}
        return dict(found) if isinstance(found, dict) else {}

    def _write(self) -> None:
        now = self._clock()
        self._folder.write(LEASE, [json.dumps({"by": self._me, "until": now + LEASE_S}).encode()])
        self._renewed_at = now
