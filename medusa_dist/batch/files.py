"""Input and output files of a batch job, in OpenAI's format: one output line per input line.

Owns parsing, checks before the start, output lines, and the partial output of a killed job, to resume from.
Not here: how lines are stored (input_file.py), sending (over_serve.py, over_http.py), the course of a job (job.py).
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

from medusa_dist.batch.input_file import MAX_LINE_BYTES, InputFile, RawLine
from medusa_dist.errors import ConfigError
from medusa_dist.request import choice_seed

URLS = ("/v1/chat/completions", "/v1/completions")
Existing = Literal["refuse", "overwrite", "resume"]
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz", ".zip"}
_KEYS = {"custom_id", "method", "url", "body"}
NO_RESPONSE = 0  # in place of a status
_MAX_NAMED = 5  # duplicates listed in one error


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One input line. id: of its output line, the same in every run with this file and this seed.

    number: line number in the file, from 1. problem: why it cannot be sent, else None. body has a seed: its own, or one
    derived from the job's.
    """

    id: str
    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] | None = None
    problem: str | None = None


def read_lines(source: InputFile, seed: int) -> Iterator[BatchLine]:
    """Iterate over the lines of an input file; blank lines are skipped."""
    return (parse_line(raw, seed) for raw in source.lines())


def parse_line(raw: RawLine, seed: int) -> BatchLine:
    """Parse one input line. seed: the job's, for lines without one."""
    number = raw.number
    digest = hashlib.blake2b(f"{seed}/{number}/".encode() + raw.data, digest_size=12).hexdigest()
    name = f"batch_req_{digest}"
    if not raw.is_whole:
        return BatchLine(name, number, None, problem=f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        given = json.loads(raw.data.decode(), parse_constant=_no_constant)
    except ValueError as error:
        return BatchLine(name, number, None, problem=f"line {number} is not valid JSON: {error}")
    except RecursionError:
        return BatchLine(name, number, None, problem=f"line {number} is nested too deeply")
    if not isinstance(given, dict):
        return BatchLine(name, number, None, problem=f"line {number} is not a JSON object")
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return BatchLine(name, number, None, problem=f"line {number}: custom_id must be a non-empty string")
    problem = _problem(given)
    if problem is not None:
        return BatchLine(name, number, custom_id, problem=f"line {number}: {problem}")
    body = given["body"]
    if body.get("seed") is None:
        # 53 bits, like seeds drawn by the service: JavaScript rounds larger numbers when it reads the response.
        body = {**body, "seed": choice_seed(seed, custom_id) % 2**53}
    return BatchLine(name, number, custom_id, given["url"], body)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


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
        return "body.stream: batch lines are not streamed; remove it"
    return None


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


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """The response to a line. body: the same JSON as over HTTP, including errors.

    status: of HTTP, or NO_RESPONSE; body is then our own error.
    """

    id: str
    custom_id: str | None
    status: int
    request_id: str
    body: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        """True for a completion, False for an error."""
        return NO_RESPONSE < self.status < 400

    def record(self) -> dict[str, Any]:
        """The output line. A failed line has OpenAI's response with the status, and a summary in `error`."""
        error = None
        if not self.is_ok:
            said = self.body.get("error") or {}
            error = {"code": said.get("code") or said.get("type") or str(self.status), "message": said.get("message")}
        response: dict[str, Any] | None = None
        if self.status != NO_RESPONSE:
            response = {"status_code": self.status, "request_id": self.request_id, "body": self.body}
        return {"id": self.id, "custom_id": self.custom_id, "response": response, "error": error}


def no_response(line_id: str, custom_id: str | None, why: str) -> LineAnswer:
    """The answer to a line that was sent and got no response."""
    return LineAnswer(line_id, custom_id, NO_RESPONSE, "", {"error": {"code": "no_response", "message": why}})


def refusal(line: BatchLine) -> dict[str, Any]:
    """The output line of an input line that was not sent."""
    error = {"code": "invalid_line", "message": line.problem}
    return {"id": line.id, "custom_id": line.custom_id, "response": None, "error": error}


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
