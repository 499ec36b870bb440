"""Passes: sends the lines of a job again and again, until each has an output line.

Owns retries and their bounds. Not here: checks before the first pass (job.py), sending (over_serve.py, over_http.py).

- A line that the service could not process is sent MAX_TRIES times, then its last response is its output line.
- A line that gets no response is sent again. After a pass without any response, the first open line is sent alone, so
  that a line that makes the service lose others is found. It is set aside after MAX_TRIES, and gets an error as its
  output line once the rest is done.
- A service that gives no response to several lines in a row, each sent alone, has stopped: the job ends.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from medusa_dist.batch.files import OutputFile, read_lines
from medusa_dist.batch.input_file import InputFile
from medusa_dist.errors import EngineError
from medusa_dist.storage.batch_lines import NO_RESPONSE, BatchLine, LineAnswer, no_response, refusal

Deliver = Callable[[LineAnswer], None]
MAX_TRIES = 3  # per line
UNPROCESSED = (NO_RESPONSE, 502, 503, 504)  # another try may succeed; 429 has waited before it comes here
MAX_ASIDE = 3  # lines set aside in a row, without a response to any other line; then the service has stopped
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)  # after each pass without any response


class Sender(Protocol):
    """Sends lines to a model."""

    def describe(self) -> dict[str, Any]:
        """The data of /v1/models. Raises MedusaError if there is no such service."""

    def send(self, lines: Iterator[BatchLine], deliver: Deliver) -> None:
        """Process all lines, in any order; each is delivered at most once.

        Lines lost in a failure of the service may get no response; the caller sends them again.
        """


class Passes:
    """The lines of one job without output. show: called after each output line."""

    def __init__(
        self, source: InputFile, seed: int, output: OutputFile, sender: Sender, show: Callable[[], None]
    ) -> None:
        self._source, self._seed = source, seed
        self._output, self._sender, self._show = output, sender, show
        self._tries: Counter[str] = Counter()
        self._aside: dict[str, BatchLine] = {}
        self._num_answers = 0

    def run(self) -> None:
        """Return when every line has an output line. Raises EngineError if the service has stopped responding."""
        num_idle = num_aside = 0  # since the last response
        while (first := next(self._open_lines(), None)) is not None:
            if self._pass(self._open_lines()):
                num_idle = num_aside = 0
                if next(self._open_lines(), None) is not None:
                    time.sleep(PAUSES_S[0])
                continue
            num_idle += 1
            time.sleep(PAUSES_S[min(num_idle, len(PAUSES_S)) - 1])
            if self._pass(iter([first])):
                continue
            self._tries[first.id] += 1
            if self._tries[first.id] >= MAX_TRIES:
                self._aside[first.id] = first
                num_aside += 1
            if num_aside > MAX_ASIDE:
                raise EngineError(f"the service gave no response in {num_idle} passes; try again with --resume")
        if self._aside:
            self._sender.describe()  # raises if it was the service that was lost
        for line in self._aside.values():
            self._write(no_response(line.id, line.custom_id, f"no response in {MAX_TRIES} tries").record())

    def _open_lines(self) -> Iterator[BatchLine]:
        """Lines without output, in order; those that cannot be sent get theirs here."""
        for line in read_lines(self._source, self._seed):
            if line.id in self._output.done or line.id in self._aside:
                continue
            if line.problem is None:
                yield line
            else:
                self._write(refusal(line))

    def _pass(self, lines: Iterator[BatchLine]) -> bool:
        """Send lines; whether any response came."""
        before = self._num_answers
        self._sender.send(lines, self._deliver)
        return self._num_answers > before

    def _deliver(self, answer: LineAnswer) -> None:
        self._num_answers += 1
        if answer.id in self._output.done:
            return
        if answer.status in UNPROCESSED:
            self._tries[answer.id] += 1
            if self._tries[answer.id] < MAX_TRIES:
                return
        self._write(answer.record())

    def _write(self, record: dict[str, Any]) -> None:
        self._output.write(record)
        self._show()
