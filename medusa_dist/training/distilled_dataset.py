"""The distilled dataset: one JSON line per answer, after a line with their origin.

Owns the format, and how a file that a killed job left is resumed. Not here: making the answers (distill.py), what is
computed from them (hidden_states.py).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from medusa_dist.config import explain_validation
from medusa_dist.config_parts.strict import Strict
from medusa_dist.errors import ConfigError


class Origin(Strict):
    """The first line: everything that determines the answers. A file is only resumed with the same origin."""

    format: Literal["medusa-dist answers 1"] = "medusa-dist answers 1"
    model: str = Field(description="The model as it was named; the fingerprint identifies it.")
    fingerprint: str | None
    dtype: str
    prompts: str = Field(description="Name of the prompt file.")
    prompts_sha256: str
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        min_length=1, description="Answer s of prompt i is sampled at temperatures[(i + s) % their number]."
    )
    samples: Annotated[int, Field(ge=1)] = Field(description="Answers per prompt.")
    max_tokens: Annotated[int, Field(ge=1)]
    seed: int


class DistilledAnswer(Strict):
    """One answer, in tokens. id: "prompt:sample", both counted from 0."""

    id: str
    category: str = ""
    temperature: float
    finish_reason: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]


DatasetLine = TypeVar("DatasetLine", Origin, DistilledAnswer)


def read_answers(path: Path) -> tuple[Origin, list[DistilledAnswer]]:
    """A whole file; an incomplete last line of a killed job is ignored. Raises ConfigError naming the line."""
    try:
        with path.open("rb") as file:
            lines = [line for line in file if line.endswith(b"\n")]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not lines:
        raise ConfigError(f"{path} is empty; it should begin with a line that describes the origin of its answers")
    origin = _parse(Origin, path, 1, lines[0])
    return origin, [_parse(DistilledAnswer, path, number, line) for number, line in enumerate(lines[1:], start=2)]


class AnswersFile:
    """A file being written, by whole lines; an incomplete last line of a killed job is dropped and made again."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Resumes a file of the same origin. Raises ConfigError if the existing file has another one."""
        self.path = path
        self.num_tokens = 0
        self.done: set[str] = set()
        if path.exists() and path.stat().st_size:
            found, answers = read_answers(path)
            differs = [key for key in Origin.model_fields if getattr(found, key) != getattr(origin, key)]
            if differs:
                key = differs[0]
                raise ConfigError(
                    f"{path} holds answers made with other options ({key}: {getattr(found, key)!r}, now "
                    f"{getattr(origin, key)!r}); give another file, or the same options to resume it"
                )
            self.done = {answer.id for answer in answers}
            self.num_tokens = sum(len(answer.output_ids) for answer in answers)
            os.truncate(path, _whole_lines(path))
            self._file: IO[str] = path.open("a")
        else:
            self._file = path.open("w")
            self._write(origin)

    def add(self, answer: DistilledAnswer) -> None:
        """Write one more line and flush it, so that it survives a kill of this process."""
        self._write(answer)
        self.done.add(answer.id)
        self.num_tokens += len(answer.output_ids)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def _write(self, line: Strict) -> None:
        self._file.write(line.model_dump_json() + "\n")
        self._file.flush()


def _parse(kind: type[DatasetLine], path: Path, number: int, line: bytes) -> DatasetLine:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise ConfigError(f"{path}, line {number}: {explain_validation(error)}") from None


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    return sum(len(line) for line in _lines(path) if line.endswith(b"\n"))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file
