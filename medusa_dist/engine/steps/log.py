"""StepLog: writes one JSON line a step to a file that does not grow without bound; read_step_log reads one.

Owns the file and the names of its keys. Not here: what a record has (record.py), what is made of the file
(heads_tools/steps/).
Each file begins with a line about the model. At MAX_BYTES the file becomes NAME.1.jsonl, in place of an older one. A
process locks its file; another one on the same machine (a second replica) writes NAME-2.jsonl. A file that cannot be
written ends the log, not the service.
"""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medusa_dist.engine.steps.record import LoggedStep, VerifiedTree
from medusa_dist.errors import StepLogError
from medusa_dist.medusa.trees.tree import Tree

logger = logging.getLogger(__name__)

MAX_BYTES = 32 * 1024**2  # of a file; there are two
FORM = 1
_MAX_FILES = 100
_FIRST = b'{"step_log": '


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """First line of a file: which engine wrote it. folder: of the model's files, and its tokenizer."""

    step_log: int = field(default=FORM, init=False)
    model: str
    folder: str
    speculation: str
    generation: int
    pid: int


class StepLog:
    """An observer of steps (record.py) that writes them to `path`."""

    def __init__(self, path: Path, about: LoggedModel, max_bytes: int = MAX_BYTES) -> None:
        self._wanted = path
        self._about = about
        self._max_bytes = max_bytes
        self._file = -1
        self._size = 0
        self.path = path  # the one that it writes; see above

    def __call__(self, record: LoggedStep) -> None:
        """Write a step. Never raises."""
        try:
            if self._file == -1 and self._max_bytes:
                self._open()
            if self._size >= self._max_bytes:
                self._rotate()
            self._write(_line_of(record))
        except OSError as error:
            logger.warning("step_log: %s cannot be written (%s); no more steps are logged", self.path, error.strerror)
            self.close()
            self._max_bytes = 0

    def open(self) -> None:
        """Open the file now. Raises StepLogError if it cannot be written."""
        try:
            self._open()
        except OSError as error:
            raise StepLogError(f"step_log: {self.path} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close the file, which gives up its lock."""
        if self._file != -1:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self._wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, _MAX_FILES):
            end = "" if number == 1 else f"-{number}"
            path = self._wanted.with_name(f"{self._wanted.stem}{end}{self._wanted.suffix}")
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                continue
            self._file, self._size, self.path = file, os.fstat(file).st_size, path
            if self._size and not path.open("rb").read(200).startswith(_FIRST):
                self.close()
                raise FileExistsError(errno.EEXIST, "it exists and is not a step log")
            self._write(json.dumps(asdict(self._about)))
            return
        raise OSError(errno.EBUSY, f"{_MAX_FILES} processes write there")

    def _rotate(self) -> None:
        self.path.replace(self.path.with_name(f"{self.path.stem}.1{self.path.suffix}"))
        self.close()
        self._open()

    def _write(self, line: str) -> None:
        if self._file != -1:
            self._size += os.write(self._file, line.encode() + b"\n")


def _line_of(record: LoggedStep) -> str:
    return json.dumps(
        {
            "step": record.step,
            "at": round(record.at, 4),
            "ms": {phase: round(1000 * seconds, 3) for phase, seconds in record.seconds.items()},
            "rows": record.num_rows,
            "prompt_rows": record.num_prompt_rows,
            "running": record.num_running,
            "waiting": record.num_waiting,
            "kv": round(record.kv_used_fraction, 4),
            "drafted_for": dict(record.drafted_for),
            "queued_ms": [round(1000 * seconds, 3) for seconds in record.queue_seconds],
            "trees": [
                {
                    "request": tree.request_id,
                    "position": tree.position,
                    "root": tree.root,
                    "tokens": tree.tree.tokens,
                    "parents": tree.tree.parents,
                    "values": [round(value, 4) for value in tree.values],
                    "drafters": ["+".join(names) for names in tree.drafters],
                    "ranked": tree.num_ranked,
                    "worthwhile": tree.num_worthwhile,
                    "accepted": tree.accepted,
                    "emitted": tree.tokens,
                }
                for tree in record.trees
            ],
        },
        separators=(",", ":"),
    )


def read_step_log(path: Path) -> Iterator[LoggedModel | LoggedStep]:
    """The lines of a step log, in order; a last line that is still being written is left out.

    Raises StepLogError, with file and line, for a file that is none.
    """
    try:
        with path.open() as file:
            for number, line in enumerate(file, start=1):
                if line.endswith("\n"):
                    yield _read_line(line, f"{path}, line {number}", is_first=number == 1)
    except (OSError, UnicodeDecodeError) as error:
        raise StepLogError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read_line(line: str, where: str, is_first: bool) -> LoggedModel | LoggedStep:
    try:
        read = json.loads(line)
        if "step_log" in read:
            if read["step_log"] != FORM:
                raise StepLogError(f"{where}: written by another version of medusa-dist (form {read['step_log']})")
            return LoggedModel(**{key: value for key, value in read.items() if key != "step_log"})
        if is_first:
            raise StepLogError(f"{where}: not a step log; the config key step_log makes one")
        return _record_of(read)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise StepLogError(f"{where}: not a line of a step log ({type(error).__name__}: {error})") from None


def _record_of(read: Mapping[str, Any]) -> LoggedStep:
    return LoggedStep(
        step=read["step"],
        at=read["at"],
        seconds={phase: ms / 1000 for phase, ms in read["ms"].items()},
        num_rows=read["rows"],
        num_prompt_rows=read["prompt_rows"],
        num_running=read["running"],
        num_waiting=read["waiting"],
        kv_used_fraction=read["kv"],
        trees=tuple(
            VerifiedTree(
                request_id=tree["request"],
                position=tree["position"],
                root=tree["root"],
                tree=Tree(tuple(tree["tokens"]), tuple(tree["parents"])),
                values=tuple(tree["values"]),
                drafters=tuple(tuple(filter(None, names.split("+"))) for names in tree["drafters"]),
                num_ranked=tree["ranked"],
                num_worthwhile=tree["worthwhile"],
                accepted=tuple(tree["accepted"]),
                tokens=tuple(tree["emitted"]),
            )
            for tree in read["trees"]
        ),
        drafted_for=read["drafted_for"],
        queue_seconds=tuple(ms / 1000 for ms in read["queued_ms"]),
    )
