"""The two files of a batch job, in OpenAI's words: lines in, one line out for each.

Owns parsing and the checks before the start, what an output line says, and the output file that a killed job leaves
behind so that it can be resumed. Not here: who answers (batch_serve.py, batch_http.py), the course of a job (batch.py).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from medusa_dist.errors import ConfigError
from medusa_dist.request import choice_seed

URLS = ("/v1/chat/completions", "/v1/completions")
Existing = Literal["refuse", "overwrite", "resume"]
_KEYS = {"custom_id", "method", "url", "body"}
_MAX_NAMED = 5  # duplicates listed in one error


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One input line. id: of its output line, the same in every run over this file with this seed.

    number: in the file, from 1. problem: why it cannot be sent, else None. body has a seed, the line's own or one made
    from the job's.
    """

    id: str
    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] | None = None
    problem: str | None = None


def read_lines(path: Path, seed: int) -> Iterator[BatchLine]:
    """The lines of an input file, one at a time; blank ones are none."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield parse_line(raw, number, seed)


def parse_line(raw: bytes, number: int, seed: int) -> BatchLine:
    """One input line. number: from 1. seed: of the job, for lines without one."""
    digest = hashlib.blake2b(f"{seed}/{number}/".encode() + raw.strip(), digest_size=12).hexdigest()
    name = f"batch_req_{digest}"
    try:
        given = json.loads(raw.decode())
    except ValueError as error:
        return BatchLine(name, number, None, problem=f"line {number} is not JSON: {error}")
    if not isinstance(given, dict):
        return BatchLine(name, number, None, problem=f"line {number} is not a JSON object")
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return BatchLine(name, number, None, problem=f"line {number}: custom_id must be a text that is not empty")
    problem = _problem(given)
    if problem is not None:
        return BatchLine(name, number, custom_id, problem=f"line {number}: {problem}")
    body = given["body"]
    if body.get("seed") is None:
        # 53 bits, like seeds drawn by the service: JavaScript rounds larger ones when it reads the answer.
        body = {**body, "seed": choice_seed(seed, custom_id) % 2**53}
    return BatchLine(name, number, custom_id, given["url"], body)


def _problem(given: dict[str, Any]) -> str | None:
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        return f"unknown key {unknown[0]!r}; a line has custom_id, method, url and body"
    if given.get("method", "POST") != "POST":
        return f"method must be POST, got {given['method']!r}"
    if given.get("url") not in URLS:
        return f"url must be {' or '.join(URLS)}, got {given.get('url')!r}"
    if not isinstance(given.get("body"), dict):
        return "body must be a JSON object"
    if given["body"].get("stream"):
        return "body.stream: a batch line is answered as a whole; remove it"
    return None


def check_input(path: Path, seed: int) -> int:
    """The number of lines. Raises ConfigError for a file that is not there, has no line, or repeats a custom_id."""
    seen: dict[int, int] = {}  # hash of a custom_id -> its line; hashes, so that a million lines stay small
    duplicates, count = [], 0
    try:
        for line in read_lines(path, seed):
            count += 1
            if line.custom_id is None:
                continue
            key = int.from_bytes(
                hashlib.blake2b(line.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
            )
            if key in seen:
                duplicates.append(f"{line.custom_id!r} in lines {seen[key]} and {line.number}")
            seen.setdefault(key, line.number)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not count:
        raise ConfigError(f"{path} is empty; a batch has one JSON object per line")
    if duplicates:
        more = f" and {len(duplicates) - _MAX_NAMED} more" if len(duplicates) > _MAX_NAMED else ""
        raise ConfigError(f"{path}: custom_ids must be unique; repeated: {', '.join(duplicates[:_MAX_NAMED])}{more}")
    return count


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What came back for a line. body: the JSON that HTTP gives, an error's included."""

    id: str
    custom_id: str | None
    status: int
    request_id: str
    body: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        """True for an answer, False for an error."""
        return self.status < 400

    def record(self) -> dict[str, Any]:
        """The output line. A line in error has OpenAI's response with the status, and `error` as a summary."""
        error = None
        if not self.is_ok:
            said = self.body.get("error") or {}
            error = {"code": said.get("code") or said.get("type") or str(self.status), "message": said.get("message")}
        response = {"status_code": self.status, "request_id": self.request_id, "body": self.body}
        return {"id": self.id, "custom_id": self.custom_id, "response": response, "error": error}


def refusal(line: BatchLine) -> dict[str, Any]:
    """The output line of an input line that was not sent."""
    error = {"code": "invalid_line", "message": line.problem}
    return {"id": line.id, "custom_id": line.custom_id, "response": None, "error": error}


class OutputFile:
    """The output while it grows: `<name>.partial`, which becomes `<name>` when it is complete.

    Use as a context manager. done: ids of lines that have their output line. num_failed: those of them in error.
    fingerprints: of the services that gave the answers that were found. Raises ConfigError if the output exists and
    existing is "refuse", if the partial output is another job's, or if another process writes it now.
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
            raise ConfigError(f"{path} is a folder")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: the folder {path.parent} does not exist")
        if existing == "resume" and path.exists() and not self.partial.exists():
            raise ConfigError(f"{path} is complete; there is nothing to resume (--overwrite starts again)")
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
            raise ConfigError(f"{self._path} exists; --overwrite replaces it")
        if self.partial.exists():
            raise ConfigError(
                f"{self.partial} exists: a job over this output did not finish; --resume goes on with it, "
                "--overwrite starts again"
            )

    def _lock(self) -> None:
        """One writer. The lock goes with the process, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{self.partial} is being written by another job") from None

    def _read(self) -> None:
        """Take over what is there, up to the last whole line, and stand behind it."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # torn by a kill
                try:
                    self._note(json.loads(raw))
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(f"{self.partial} is no output of this command; remove it") from None
                end += len(raw)
        os.lseek(self._file, end, os.SEEK_SET)

    def _note(self, record: dict[str, Any]) -> None:
        self.done.add(record["id"])
        self.num_failed += record["error"] is not None
        if record["error"] is None:
            self.fingerprints.add(record["response"]["body"].get("system_fingerprint", ""))

    def write(self, record: dict[str, Any]) -> None:
        """Append a line, by one write: a kill leaves it whole, absent, or torn at the very end."""
        data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        self.done.add(record["id"])
        self.num_failed += record["error"] is not None

    def complete(self) -> None:
        """Every line is there: give the file its name."""
        os.fsync(self._file)
        os.replace(self.partial, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.done:
            with suppress(FileNotFoundError):
                self.partial.unlink()  # nothing to resume
        os.close(self._file)
