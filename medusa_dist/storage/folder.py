"""Folder: what the store needs of the place where it is kept, and that place on this machine's file system.

Owns atomic writes and the lock of a folder. Not here: URLs (remote_folder.py), what is kept (file_store.py,
batch_store.py). Names are relative paths with slashes. All methods block.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock, Timeout

from medusa_dist.errors import StorageError

TMP = "tmp"
STALE_S = 3600.0  # a temporary file that is older was left by a process that was killed
LOCK_S = 60.0


class Folder(Protocol):
    """A place for named bytes. Methods raise FileNotFoundError for what is not there, else StorageError.

    appends: whether `append` adds to what is there at once; otherwise each write makes a new object.
    poll_s: how often it is sensible to look for news.
    """

    appends: bool
    poll_s: float

    def write(self, name: str, data: Iterable[bytes]) -> int:
        """Write a file as a whole or not at all; returns its size in bytes."""

    def append(self, name: str, data: bytes) -> None:
        """Add to a file. Only where `appends`."""

    def open(self, name: str) -> BinaryIO:
        """Open a file to read."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""

    def delete_folder(self, name: str) -> None:
        """Delete a folder with the files in it, if it is there."""

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders directly in a folder, sorted; none if it does not exist."""

    def num_bytes(self) -> int:
        """The size of all that is kept."""

    def alone(self) -> "Lock":
        """A lock that one process has at a time: the one that runs batches."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Where the place has locks: no other process is in such a block meanwhile."""
        yield

    def sweep(self) -> None:
        """Delete what killed processes left half written."""


class Lock(Protocol):
    """A lock that is lost with the process that has it."""

    def acquire(self) -> bool:
        """Take the lock, without waiting; whether that worked."""

    def renew(self) -> bool:
        """Keep the lock; False if it was lost."""

    def release(self) -> None:
        """Give the lock back."""


class FileSystemLock:
    """A lock on a local file. The kernel releases it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # is_singleton=False: two servers in one process must exclude each other, too.
        self._lock = FileLock(path, timeout=0, thread_local=False)

    def acquire(self) -> bool:
        """See Lock."""
        if not self._path.parent.is_dir():
            return False  # nothing was ever stored, so there is nothing to do
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            raise StorageError(f"{self._path} cannot be locked: {error.strerror}") from None
        return True

    def renew(self) -> bool:
        """See Lock."""
        return self._lock.is_locked

    def release(self) -> None:
        """See Lock."""
        self._lock.release()


class LocalFolder:
    """A folder of this machine's file system, or of one that is mounted. It is made by the first write."""

    appends = True
    poll_s = 1.0

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    def write(self, name: str, data: Iterable[bytes]) -> int:
        """See Folder: a temporary file, flushed to the disk, then renamed."""
        target, temporary = self._root / name, self._root / TMP / uuid.uuid4().hex
        size = 0
        try:
            for path in (target, temporary):
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("xb") as file:
                for part in data:
                    size += file.write(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _flush_folder(target.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._trouble("write", error) from None
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return size

    def append(self, name: str, data: bytes) -> None:
        """See Folder."""
        path = self._root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                while data:
                    data = data[os.write(file, data) :]
            finally:
                os.close(file)
        except OSError as error:
            raise self._trouble("write", error) from None

    def open(self, name: str) -> BinaryIO:
        """See Folder."""
        try:
            return (self._root / name).open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._trouble("read", error) from None

    def delete(self, name: str) -> None:
        """See Folder."""
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._trouble("delete from", error) from None

    def delete_folder(self, name: str) -> None:
        """See Folder."""
        for one in self.names(name):
            self.delete(f"{name}/{one}")
        with suppress(OSError):
            (self._root / name).rmdir()

    def names(self, folder: str) -> list[str]:
        """See Folder."""
        try:
            return sorted(os.listdir(self._root / folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._trouble("read", error) from None

    def num_bytes(self) -> int:
        """See Folder."""
        size = 0
        for folder, _, names in os.walk(self._root):
            for name in names:
                with suppress(OSError):
                    size += os.stat(os.path.join(folder, name)).st_size
        return size

    def alone(self) -> FileSystemLock:
        """See Folder."""
        return FileSystemLock(self._root / "worker.lock")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See Folder."""
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(self._root / "upload.lock", timeout=LOCK_S)
            lock.acquire()
        except OSError as error:  # Timeout is one
            raise self._trouble("lock", error) from None
        try:
            yield
        finally:
            lock.release()

    def sweep(self) -> None:
        """See Folder."""
        for name in self.names(TMP):
            path = self._root / TMP / name
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()

    def _trouble(self, verb: str, error: OSError) -> StorageError:
        return StorageError(f"cannot {verb} the store of files (files.store): {error.strerror or error}")


def _flush_folder(path: Path) -> None:
    """A rename is on the disk once its folder is."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
