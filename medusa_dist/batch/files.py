"""Input and output files of a batch job, in OpenAI's format: one output line per input line.

Owns checks before the start, and the partial output of a killed job, to resume from. Not here: what a line means
(storage/batch_lines.py), how lines are stored (input_file.py), sending (over_serve.py, over_http.py), the course of a
job (job.py).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from medusa_dist.batch.input_file import InputFile
from medusa_dist.errors import ConfigError
from medusa_dist.storage.batch_lines import BatchLine, parse_line

Existing = Literal["refuse", "overwrite", "resume"]
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz", ".zip"}
_MAX_NAMED = 5  # duplicates listed in one error


def read_lines(source: InputFile, seed: int) -> Iterator[BatchLine]:
    """Iterate over the lines of an input file; blank lines are skipped."""
    return (parse_line(raw, seed) for raw in source.lines())


def check_input(source: InputFile, seed: int) -> int:
    """The number of lines. Raises ConfigError for a file that is missing, is empty, or repeats a custom_id."""
    seen: dict[int, int] = {}  # hash of a custom_id -> its line; hashes, so that a million lines stay small
    duplicates, count = [], 0
    for line in read_lines(source, seed):
        count += 1
        if line.custom_id is None:
            continue
        key = int.from_bytes(hashlib.blake2b(line.custom_id.encode(errors="surrogatepass"), digest_size=16).digest())
        if key in seen:
            duplicates.append(f"{line.custom_id!r} in lines {seen[key]} and {line.number}")
        seen.setdefault(key, line.number)
    if not count:
        raise ConfigError(f"{source.name} is empty; a batch file has one JSON object per line")
    if duplicates:
        more = f" and {len(duplicates) - _MAX_NAMED} more" if len(duplicates) > _MAX_NAMED else ""
        raise ConfigError(
            f"{source.name}: custom_ids must be unique; repeated: {', '.join(duplicates[:_MAX_NAMED])}{more}"
        )
    return count


class OutputFile:
    """The output of a running job: `<name>.partial`, renamed to `<name>` when it is complete.

    Use as a context manager. done: ids of lines with an output line. num_failed: number of failed ones among them.
    fingerprints: of the services that produced the existing output. Raises ConfigError if the output exists and
    existing is "refuse", if the partial output belongs to another job, or if another process is writing it.
    """

    def __init__(self, path: Path, existing: Existing) -> None:
        self._path = path
        self.partial = path.with_name(path.name + ".partial")
        self.done: set[str] = set()
        self.num_failed = 0
        self.fingerprints: set[str] = set()
        if existing == "refuse":
            self._refuse_existing()
        elif existing == "overwrite" and path.is_dir():
            raise ConfigError(f"{path} is a folder; give a file")
        if str(path) == "-":
            raise ConfigError("-: the output must be a file, which --resume can continue; give its name")
        if path.suffix in _COMPRESSED:
            raise ConfigError(f"{path}: the output is not compressed; give a name without {path.suffix}")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: the folder {path.parent} does not exist")
        if existing == "resume" and path.exists() and not self.partial.exists():
            raise ConfigError(f"{path} is complete, with nothing to resume; use --overwrite to start again")
        try:
            self._file = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{self.partial} cannot be written: {error.strerror}") from None
        try:
            self._lock()
            if existing == "resume":
                self._read()
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR))
        except ConfigError:
            os.close(self._file)
            raise

    def _refuse_existing(self) -> None:
        if self._path.exists():
            raise ConfigError(f"{self._path} exists; use --overwrite to replace it")
        if self.partial.exists():
            raise ConfigError(
                f"{self.partial} exists: an earlier job with this output did not finish; use --resume to continue it, "
                "or --overwrite to start again"
            )

    def _lock(self) -> None:
        """Ensure a single writer. The lock ends with the process, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{self.partial} is being written by another job") from None

    def _read(self) -> None:
        """Read the existing output up to its last complete line, and continue after it."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # cut off by a kill
                try:
                    self._note(json.loads(raw))
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(f"{self.partial} is not an output of this command; remove it") from None
                end += len(raw)
        os.lseek(self._file, end, os.SEEK_SET)

    def _note(self, record: dict[str, Any]) -> None:
        self.done.add(record["id"])
        self.num_failed += record["error"] is not None
        if record["error"] is None:
            self.fingerprints.add(record["response"]["body"].get("system_fingerprint", ""))

    def write(self, record: dict[str, Any]) -> None:
        """Append a line with one write: a kill leaves it complete, missing, or cut off at the end of the file."""
        data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise self._cannot_write(error) from None
        self.done.add(record["id"])
        self.num_failed += record["error"] is not None

    def complete(self) -> None:
        """All lines are written: rename the file to its final name."""
        try:
            os.fsync(self._file)
            os.replace(self.partial, self._path)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.partial} cannot be written: {error.strerror}; {len(self.done)} lines are in it, "
            "and --resume continues"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.done:
            with suppress(FileNotFoundError):
                self.partial.unlink()  # nothing to resume
        os.close(self._file)
