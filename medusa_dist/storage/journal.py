"""Journal: the finished lines of a running batch, so that a restart neither repeats nor loses one.

Owns its format. Not here: the input (batch_lines.py), when a line is finished (api/batches/run.py).
A journal is a folder of segments, each written by one process: `<number> <1|0> <output line>`, one line each, 1 for a
success. On a file system each line is appended at once; at a URL a segment is written every FLUSH_S or FLUSH_LINES.
A line that occurs twice, because two processes ran the batch, counts once: the first in the order of segments.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from medusa_dist.storage.folder import Folder
from medusa_dist.storage.pages import new_id

FLUSH_S = 10.0
FLUSH_LINES = 256


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished line. number: in the input. record: its output line, without a line feed."""

    number: int
    is_ok: bool
    record: bytes


class Journal:
    """The journal of one batch, in one process. Methods block; `add` may be called by several threads."""

    def __init__(self, folder: Folder, batch_id: str) -> None:
        self._folder = folder
        self._place = f"journals/{batch_id}"
        self._segment = new_id("")
        self._kept: list[bytes] = []
        self._flushed_at = time.monotonic()
        self._lock = threading.Lock()

    def add(self, line: Finished) -> None:
        """Note a finished line."""
        data = b"%d %d %s\n" % (line.number, line.is_ok, line.record)
        with self._lock:
            if self._folder.appends:
                self._folder.append(f"{self._place}/{self._segment}", data)
                return
            self._kept.append(data)
            if len(self._kept) >= FLUSH_LINES or time.monotonic() - self._flushed_at >= FLUSH_S:
                self._write_kept()

    def flush(self) -> None:
        """Write what was noted."""
        with self._lock:
            if self._kept:
                self._write_kept()

    def _write_kept(self) -> None:
        self._folder.write(f"{self._place}/{new_id('')}", self._kept)
        self._kept, self._flushed_at = [], time.monotonic()

    def lines(self) -> Iterator[Finished]:
        """All lines that were written, each once, in the order in which they were finished."""
        seen: set[int] = set()
        for segment in self._folder.names(self._place):
            with self._folder.open(f"{self._place}/{segment}") as file:
                for raw in file:
                    if not raw.endswith(b"\n"):
                        break  # cut off by a kill
                    number, is_ok, record = raw[:-1].split(b" ", 2)
                    if int(number) not in seen:
                        seen.add(int(number))
                        yield Finished(int(number), is_ok == b"1", record)

    def remove(self) -> None:
        """Delete the journal."""
        self._folder.delete_folder(self._place)
