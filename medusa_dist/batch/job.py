"""`medusa-dist batch`: a file of requests in OpenAI's batch form, answered line by line.

Owns the course of a job: checks, what is still to do, retries, the closing counts. Not here: the files' form
(batch_file.py), how lines reach a model (batch_serve.py: through Ray; batch_http.py: through HTTP).
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
MAX_TRIES = 3  # of a line that the service could not answer (503)
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)  # after a pass without a single answer; then the job gives up


class Sender(Protocol):
    """A way to a model."""

    def describe(self) -> dict[str, Any]:
        """The facts of /v1/models. Raises MedusaError if there is no such service."""

    def send(self, lines: Iterator[BatchLine], deliver: Deliver) -> None:
        """Have all lines answered, in any order; each at most once.

        Lines that were lost with a part of the service may stay without an answer: the caller sends them again.
        """


@dataclass(frozen=True, slots=True)
class Counts:
    """The result. num_resumed: of num_lines, those that an earlier run had done."""

    num_lines: int
    num_failed: int
    num_resumed: int
    seconds: float

    def __str__(self) -> str:
        fresh = self.num_lines - self.num_resumed
        rate = f", {fresh / self.seconds:.1f} lines/s" if fresh else ""
        resumed = f" ({self.num_resumed} from before)" if self.num_resumed else ""
        return (
            f"{self.num_lines} lines{resumed}: {self.num_lines - self.num_failed} answered, "
            f"{self.num_failed} in error; {self.seconds:.1f} s{rate}"
        )


def run_batch(
    source: Path, target: Path, get_sender: Callable[[], Sender], console: Console, seed: int, existing: Existing
) -> Counts:
    """Answer every line of source; target appears when all are there.

    get_sender: called once both files are found in order, since a model may have to be started for it. Raises
    ConfigError for what keeps the job from starting, EngineError where the service does not answer any more; what was
    done is kept for existing="resume" then.
    """
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} is both input and output")
    total = check_input(source, seed)
    with OutputFile(target, existing) as output:
        resumed = len(output.done)
        _check_same_input(source, seed, output)
        console.print(f"{total} lines, job seed {seed}" + (f", {resumed} done before" if resumed else ""))
        began = time.monotonic()
        if resumed < total:
            sender = get_sender()
            _check_same_model(output, sender.describe())
            began = time.monotonic()
            with ProgressDisplay(console) as progress:

                def show() -> None:
                    failed = f"{output.num_failed} in error"
                    progress.say(ProgressText("answering", len(output.done), total, "lines", failed))

                show()
                _answer_all(source, seed, output, sender, show)
        output.complete()
        return Counts(total, output.num_failed, resumed, time.monotonic() - began)


def _check_same_input(source: Path, seed: int, output: OutputFile) -> None:
    if output.done:
        strangers = len(output.done) - sum(line.id in output.done for line in read_lines(source, seed))
        if strangers:
            raise ConfigError(
                f"{output.partial} holds {strangers} lines that do not come from {source} with job seed {seed}; "
                "resume with the same file and --seed, or start again with --overwrite"
            )


def _check_same_model(output: OutputFile, facts: dict[str, Any]) -> None:
    fingerprint = facts.get("system_fingerprint")
    others = output.fingerprints - {fingerprint}
    if fingerprint is not None and others:
        raise ConfigError(
            f"{output.partial} was answered by {', '.join(sorted(others))}, this service is {fingerprint}: another "
            "model, dtype or version; --overwrite starts again"
        )


def _answer_all(source: Path, seed: int, output: OutputFile, sender: Sender, show: Callable[[], None]) -> None:
    """Pass after pass over what has no output line yet, until nothing is left."""
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
            raise EngineError(f"the service answered no line in {num_idle} passes; try again with --resume")
        time.sleep(PAUSES_S[max(0, num_idle - 1)])
