"""The engine thread: a command queue in, a stream of output batches out.

Owns what happens around `Engine.step`: commands, step, outputs, and the heartbeat of an idle engine.
Not here: what a step does (engine.py), merging of outputs (outbox.py), Ray (serve/rank.py).
`run` belongs to one thread, the only one that touches the engine; `post`, `close` and `batches` may be called from
others.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from medusa_dist.engine.messages import Abort, Close, Command, OutputBatch, Refusal, Submit
from medusa_dist.engine.outbox import Outbox
from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.samples import MAX_SAMPLES, StepSample
from medusa_dist.errors import MedusaError
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.request import Request

logger = logging.getLogger(__name__)

MAX_WAITING_TOKENS = 1024  # of one request in the outbox; several seconds of decoding, so only a dead reader reaches it
TURN_S = 1.0  # an idle loop iterates, and an idle stream yields, at least this often


class SteppingEngine(Protocol):
    """The part of engine.Engine that the loop uses."""

    def prepare(self, request: Request) -> None:
        """Do the slow part of accepting a request; called from any thread."""

    def submit(self, request: Request, output_ids: tuple[int, ...] = ()) -> None:
        """Queue a request; raises RequestError."""

    def abort(self, request_id: str) -> None:
        """Drop a request. Idempotent; no output follows."""

    def step(self) -> list[Output]:
        """Advance all running sequences."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def heartbeat(self) -> None:
        """Tell the followers that rank 0 is alive."""

    def stop(self) -> None:
        """Tell the followers to return."""

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""

    def take_samples(self) -> list[StepSample]:
        """Samples of the steps since the last call."""


class EngineLoop:
    """Runs an engine until closed.

    heartbeat_s: how often an idle engine calls `Engine.heartbeat`. stall_s: see Outbox.
    """

    def __init__(
        self,
        engine: SteppingEngine,
        heartbeat_s: float,
        stall_s: float,
        generation: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._heartbeat_s = heartbeat_s
        self._generation = generation
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command | Close] = queue.SimpleQueue()
        self._outbox = Outbox(MAX_WAITING_TOKENS, stall_s, clock)
        self._stats = engine.stats()
        self._samples: deque[StepSample] = deque(maxlen=MAX_SAMPLES)  # of the engine's thread, for that of the stream
        self._turned_at = self._beat_at = clock()

    def post(self, commands: Iterable[Command]) -> None:
        """Queue commands, in order, without waiting for the engine; grammars are compiled here while it decodes."""
        for command in commands:
            if isinstance(command, Submit) and command.request.params.grammar is not None:
                self._engine.prepare(command.request)
            self._inbox.put(command)

    def close(self) -> None:
        """Make `run` stop the engine and return, after the commands that were posted before."""
        self._inbox.put(Close())

    def run(self) -> None:
        """Serve until `close`. Any exception of the engine ends the loop; earlier outputs can still be read."""
        try:
            while self._turn():
                pass
            self._engine.stop()
        finally:
            self._outbox.close()

    def batches(self) -> Iterator[OutputBatch]:
        """Blocking iterator over outputs, merged while the reader was busy; empty batches every TURN_S when idle."""
        number = 0
        while not self._outbox.finished:
            messages = tuple(self._outbox.take(TURN_S))
            samples = tuple(self._samples.popleft() for _ in range(len(self._samples)))
            age_s = self._clock() - self._turned_at
            yield OutputBatch(self._generation, number, messages, age_s, self._stats, samples)
            number += 1

    def _turn(self) -> bool:
        """Run all queued commands, then one step. False if the loop was closed."""
        self._turned_at = self._clock()
        wait_s = 0.0 if self._engine.has_work else min(TURN_S, self._heartbeat_s)
        while (command := self._next(wait_s)) is not None:
            if isinstance(command, Close):
                return False
            self._obey(command)
            wait_s = 0.0
        if self._engine.has_work:
            outputs = self._engine.step()
            for output in outputs:
                if output.finish_reason is not None:
                    logger.info("a request ended", extra={"request": output.request_id, "reason": output.finish_reason})
            self._outbox.put(outputs)
            self._beat_at = self._clock()
        elif self._clock() - self._beat_at >= self._heartbeat_s:
            self._engine.heartbeat()
            self._beat_at = self._clock()
        for request_id in self._outbox.stalled():
            self._engine.abort(request_id)
            self._outbox.put([Output(request_id=request_id, finish_reason=FinishReason.ABORT)])
        self._stats = self._engine.stats()
        self._samples += self._engine.take_samples()
        return True

    def _next(self, wait_s: float) -> Command | Close | None:
        try:
            return self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            return None

    def _obey(self, command: Command) -> None:
        if isinstance(command, Abort):
            logger.info("a request is aborted", extra={"request": command.request_id})
            self._engine.abort(command.request_id)
            return
        request = command.request
        fields = {"prompt_tokens": len(request.prompt_ids), "output_tokens": len(command.output_ids)}
        logger.info("a request arrives", extra={"request": request.request_id, **fields})
        try:
            self._engine.submit(request, command.output_ids)
        except MedusaError as error:
            self._outbox.put([Refusal(command.request.request_id, error)])
