"""`medusa-dist batch`: runs a batch job over a file in OpenAI's format.

Owns the course of a job: checks, progress, what is said if it is stopped, final counts. Not here: file formats
(files.py, input_file.py), retries (passes.py), sending lines to a model (over_serve.py: through Ray; over_http.py).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from medusa_dist.batch.files import Existing, OutputFile, check_input, read_lines
from medusa_dist.batch.input_file import InputFile, open_input
from medusa_dist.batch.passes import Passes, Sender
from medusa_dist.errors import ConfigError
from medusa_dist.tools.progress import ProgressDisplay, ProgressText


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

    source: "-" is standard input. get_sender: called after both files are checked, because it may have to start a
    model. Raises ConfigError if the job cannot start, EngineError if the service stops responding; completed lines are
    then kept for existing="resume". KeyboardInterrupt passes through, after a line that says how far the job came.
    """
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} is both input and output; give another output")
    output: OutputFile | None = None
    total = 0
    try:
        with open_input(source) as lines:
            total = check_input(lines, seed)
            with OutputFile(target, existing) as output:
                resumed = len(output.done)
                _check_same_input(lines, seed, output)
                console.print(f"{total} lines, job seed {seed}" + (f", {resumed} already done" if resumed else ""))
                began = time.monotonic()
                if resumed < total:
                    sender = get_sender()
                    _check_same_model(output, sender.describe())
                    began = time.monotonic()
                    _process(lines, seed, output, sender, ProgressDisplay(console), total)
                output.complete()
                return Counts(total, output.num_failed, resumed, time.monotonic() - began)
    except KeyboardInterrupt:
        far = "stopped while the input was read" if output is None else how_far(output, total)
        console.print(far, markup=False, highlight=False)
        raise


def how_far(output: OutputFile, total: int) -> str:
    """What a stopped job leaves, and how to go on."""
    if not output.done:
        return f"stopped: none of {total} lines is done, and nothing was written"
    kept = f"stopped: {len(output.done)} of {total} lines are done and kept in {output.partial}"
    return f"{kept}; the same command with --resume continues"


def _process(
    lines: InputFile, seed: int, output: OutputFile, sender: Sender, progress: ProgressDisplay, total: int
) -> None:
    with progress:

        def show() -> None:
            failed = f"{output.num_failed} failed"
            progress.say(ProgressText("processing", len(output.done), total, "lines", failed))

        show()
        Passes(lines, seed, output, sender, show).run()


def _check_same_input(source: InputFile, seed: int, output: OutputFile) -> None:
    if output.done:
        strangers = len(output.done) - sum(line.id in output.done for line in read_lines(source, seed))
        if strangers:
            raise ConfigError(
                f"{output.partial} contains {strangers} lines that do not come from {source.name} with job seed "
                f"{seed}; resume with the same file and --seed, or start again with --overwrite"
            )


def _check_same_model(output: OutputFile, facts: dict[str, Any]) -> None:
    fingerprint = facts.get("system_fingerprint")
    others = output.fingerprints - {fingerprint}
    if fingerprint is not None and others:
        raise ConfigError(
            f"{output.partial} was produced by {', '.join(sorted(others))}, but this service is {fingerprint}: another "
            "model, dtype or version; use --overwrite to start again"
        )
