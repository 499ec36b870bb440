"""`medusa-dist batch`: runs a batch job over a file in OpenAI's format.

Owns the course of a job: checks, remaining lines, retries, final counts. Not here: file formats (files.py), sending
lines to a model (over_serve.py: through Ray; over_http.py: over HTTP).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from medusa_dist.batch.files import BatchLine, Existing, LineAnswer, OutputFile, check_input, read_lines, refusal
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.tools.progress import ProgressDisplay, ProgressText

Deliver = Callable[[LineAnswer], None]
MAX_TRIES = 3  # per line that the service could not process (503)
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)  # after each pass without any response; then the job ends


class Sender(Protocol):
    """Sends lines to a model."""

    def describe(self) -> dict[str, Any]:
        """The data of /v1/models. Raises MedusaError if there is no such service."""

    def send(self, lines: Iterator[BatchLine], deliver: Deliver) -> None:
        """Process all lines, in any order; each is delivered at most once.

        Lines lost in a failure of the service may get no response; the caller sends them again.
        """


@dataclass(frozen=True, slots=True)
class Counts:
    """The result. num_resumed: lines of num_lines that an earlier run had completed."""

    num_lines: int
    num_failed: int
    num_resumed: int
    seconds: float

    def __str__(self) -> str:
        fresh = self.num_lines - self.num_resumed
        rate = f", {fresh / self.seconds:.1f} lines/s" if fresh else ""
        resumed = f" ({self.num_resumed} from an earlier run)" if self.num_resumed else ""
        return (
            f"{self.num_lines} lines{resumed}: {self.num_lines - self.num_failed} succeeded, "
            f"{self.num_failed} failed; {self.seconds:.1f} s{rate}"
        )


def run_batch(
    source: Path, target: Path, get_sender: Callable[[], Sender], console: Console, seed: int, existing: Existing
) -> Counts:
    """Process every line of source; target appears when all are complete.

    get_sender: called after both files are checked, because it may have to start a model. Raises ConfigError if the job
    cannot start, EngineError if the service stops responding; completed lines are then kept for existing="resume".
    """
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} is both input and output; give another output")
    total = check_input(source, seed)
    with OutputFile(target, existing) as output:
        resumed = len(output.done)
        _check_same_input(source, seed, output)
        console.print(f"{total} lines, job seed {seed}" + (f", {resumed} already done" if resumed else ""))
        began = time.monotonic()
        if resumed < total:
            sender = get_sender()
            _check_same_model(output, sender.describe())
            began = time.monotonic()
            with ProgressDisplay(console) as progress:

                def show() -> None:
                    failed = f"{output.num_failed} failed"
                    progress.say(ProgressText("processing", len(output.done), total, "lines", failed))

                show()
                _answer_all(source, seed, output, sender, show)
        output.complete()
        return Counts(total, output.num_failed, resumed, time.monotonic() - began)


def _check_same_input(source: Path, seed: int, output: OutputFile) -> None:
    if output.done:
        strangers = len(output.done) - sum(line.id in output.done for line in read_lines(source, seed))
        if strangers:
            raise ConfigError(
                f"{output.partial} contains {strangers} lines that do not come from {source} with job seed {seed}; "
                "resume with the same file and --seed, or start again with --overwrite"
            )


def _check_same_model(output: OutputFile, facts: dict[str, Any]) -> None:
    fingerprint = facts.get("system_fingerprint")
    others = output.fingerprints - {fingerprint}
    if fingerprint is not None and others:
        raise ConfigError(
            f"{output.partial} was produced by {', '.join(sorted(others))}, but this service is {fingerprint}: another "
            "model, dtype or version; use --overwrite to start again"
        )


def _answer_all(source: Path, seed: int, output: OutputFile, sender: Sender, show: Callable[[], None]) -> None:
    """Repeat passes over the lines without output until none is left."""
    tries: dict[str, int] = {}

    def todo() -> Iterator[BatchLine]:
        for line in read_lines(source, seed):
            if line.id in output.done:
                continue
            if line.problem is None:
                yield line
            else:
                output.write(refusal(line))
                show()

    def deliver(answer: LineAnswer) -> None:
        if answer.id in output.done:
            return
        if answer.status == 503:
            tries[answer.id] = tries.get(answer.id, 0) + 1
            if tries[answer.id] < MAX_TRIES:
                return
        output.write(answer.record())
        show()

    num_idle = 0
    while True:
        before = len(output.done) + sum(tries.values())
        sender.send(todo(), deliver)
        if all(line.id in output.done for line in read_lines(source, seed)):
            return
        num_idle = 0 if len(output.done) + sum(tries.values()) > before else num_idle + 1
        if num_idle > len(PAUSES_S):
            raise EngineError(f"the service completed no line in {num_idle} passes; try again with --resume")
        time.sleep(PAUSES_S[max(0, num_idle - 1)])
