"""Supervisor: runs a tensor-parallel group, restarts it after failures, resumes requests.

Owns the requests of one replica and the generations of its group. Not here: processes (group.py), HTTP and Ray Serve
(replica.py). All methods belong to one event loop; blocking calls run in threads.
A generation ends when the first of four tasks ends: reader (output stream), sender (commands), watcher (a rank
returned or died), patrol (silence, clients that do not read). All ranks are then killed, and a new group gets every
request again, with the tokens that were already delivered.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayError

from medusa_dist.config import Config
from medusa_dist.engine.messages import Abort, Command, EngineMessage, OutputBatch, Refusal
from medusa_dist.engine.stats import EngineStats
from medusa_dist.errors import EngineError, GroupError, MedusaError, OverloadedError, RequestError
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.request import Request
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.inflight import InflightRequest
from medusa_dist.serve.metrics import ServiceMetrics

logger = logging.getLogger("ray.serve")

PATROL_S = 0.5
SILENCE_S = 15.0  # the stream sends a batch every second, from a thread that no step blocks
GRACE_S = 5.0  # beyond the step's own deadline, so that the ranks notice a hang first and name the cause
BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class Supervisor:
    """The requests of one replica and the group that decodes them. make_group(generation): returns a group to start."""

    def __init__(self, config: Config, make_group: Callable[[int], TPWorkerGroup], watch: ServiceMetrics) -> None:
        self._config = config
        self._make_group = make_group
        self._watch = watch
        self._pending: dict[str, InflightRequest] = {}
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._generation = -1
        self._group: TPWorkerGroup | None = None
        self._decodes = False
        self._down_since: float | None = None
        self._num_tries = 0  # starts since the group last decoded
        self._num_silent = 0  # iterations of the patrol since the last batch
        self._over: MedusaError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.facts: dict[str, Any] = {}  # of rank 0, after the start
        self.stats = EngineStats()  # of the current group, as of its last batch
        self.trouble = "it is starting"  # why it does not decode, if it does not

    # Called by the replica

    async def start(self) -> None:
        """Start the first generation. If it fails to start, raises the cause and leaves no process."""
        group = self._next_group()
        try:
            await asyncio.to_thread(group.start)
        except MedusaError:
            await asyncio.to_thread(group.kill)
            raise
        self.facts = group.facts[0]
        self._watch.on_start(group.seconds)
        self._keeper = asyncio.create_task(self._keep(group))
        self._keeper.add_done_callback(self._keeper_ended)

    async def stop(self) -> None:
        """End all requests and the group. Leaves no process."""
        self._give_up(EngineError("the service is shutting down"))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._group is not None:
            await asyncio.to_thread(self._group.stop)

    def check(self) -> None:
        """If this replica cannot decode again, raise the cause."""
        if self._over is not None:
            raise self._over

    @property
    def decodes(self) -> bool:
        """True while the group responds, False from a failure until the next group is up."""
        return self._decodes and self._num_silent * PATROL_S < GRACE_S

    @property
    def generation(self) -> int:
        """Number of the current group: 0, 1, 2, ... which is the number of restarts so far."""
        return self._generation

    @property
    def num_requests(self) -> int:
        """Requests running or waiting in this replica."""
        return len(self._pending)

    async def outputs(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs for the request's client, merged while it does not read. Closing the iterator aborts the request.

        Raises OverloadedError before the first output if the replica is full, RequestError if the engine refuses the
        request, EngineError if it cannot be completed.
        """
        pending = self._admit(request)
        try:
            while True:
                output = await pending.take()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._release(pending)

    def abort(self, request_id: str) -> None:
        """Abort a request now: its iterator gets a last output. Unknown and finished ids are ignored."""
        pending = self._pending.get(request_id)
        if pending is not None and not pending.is_over:
            pending.deliver(Output(request_id=request_id, finish_reason=FinishReason.ABORT), time.monotonic())
            self._tell(Abort(request_id))

    # Requests

    def _admit(self, request: Request) -> InflightRequest:
        self.check()
        limit = self._config.max_running + self._config.max_queued
        if len(self._pending) >= limit:
            raise OverloadedError(f"{limit} requests are running or waiting (max_running + max_queued); retry later")
        if request.request_id in self._pending:
            raise RequestError(f"request_id {request.request_id!r} is already in use", "request_id")
        pending = self._pending[request.request_id] = InflightRequest(request, time.monotonic())
        self._submit()
        return pending

    def _submit(self) -> None:
        """Submit requests that the group does not have: all, or only the first suspect while there is one.

        A request that makes every group fail is thus identified while it runs alone, and fails no other request.
        """
        if self._decodes:
            suspect = next((pending for pending in self._pending.values() if pending.is_suspect), None)
            for pending in self._pending.values() if suspect is None else [suspect]:
                if not pending.is_submitted and not pending.is_over:
                    self._commands.put_nowait(pending.submission())

    def _tell(self, command: Command) -> None:
        """Queue a command; without a group it is not needed, since the next group gets every request again."""
        if self._decodes:
            self._commands.put_nowait(command)

    def _release(self, pending: InflightRequest) -> None:
        """Remove a request, and abort it in the engine if it may still run."""
        del self._pending[pending.request.request_id]
        if not pending.is_over:
            self._tell(Abort(pending.request.request_id))
        if pending.is_suspect:
            self._submit()
        self._watch.on_end(pending)
        pending.log_end(self._config.log_format, time.monotonic())

    def _deliver(self, message: EngineMessage) -> None:
        pending = self._pending.get(message.request_id)
        if pending is None or pending.is_over:
            return  # its client disconnected
        was_suspect = pending.is_suspect
        if isinstance(message, Refusal):
            pending.fail(message.error)
        else:
            now = time.monotonic()
            self._watch.on_output(pending, message, now)
            pending.deliver(message, now)
        if was_suspect:
            self._submit()

    # Generations

    def _next_group(self) -> TPWorkerGroup:
        self._generation += 1
        self._group = self._make_group(self._generation)
        return self._group

    async def _keep(self, group: TPWorkerGroup | None) -> None:
        """Run one generation after another, until one cannot be started in time."""
        while group is not None:
            error = await self._run(group)
            self.trouble = f"the group is restarting: {error}"
            logger.error("generation %d failed: %s", self._generation, error)
            self._watch.on_failure(error)
            group = await self._restart(error)

    async def _run(self, group: TPWorkerGroup) -> GroupError:
        """Run one generation until it fails; returns the cause."""
        self._commands = asyncio.Queue()
        self._num_silent, self._decodes = 0, True
        self._submit()
        work = (self._read(group), self._send(group), self._await_end(group), self._patrol())
        tasks = [asyncio.ensure_future(part) for part in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._decodes = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            error = task.exception()
            if isinstance(error, GroupError):
                return error
            if error is not None and not isinstance(error, RayError):
                logger.error("the replica lost its group through an internal error", exc_info=error)
        return await asyncio.to_thread(group.cause)

    async def _restart(self, error: MedusaError) -> TPWorkerGroup | None:
        """Start the next group; None after restart_s. Waits longer after each failed start."""
        failed_at = time.monotonic()
        if self._down_since is None:
            self._down_since, self._num_tries = failed_at, 0
        deadline = self._down_since + self._config.timeouts.restart_s
        for pending in self._pending.values():
            pending.record_failure()
        while (limit_s := deadline - time.monotonic()) > 0:
            pause_s = min(BACKOFF_S[min(self._num_tries, len(BACKOFF_S) - 1)], limit_s)
            self._num_tries += 1
            try:
                assert self._group is not None
                await asyncio.to_thread(self._group.kill)
                await asyncio.sleep(pause_s)
                began = time.monotonic()
                group = self._next_group()
                await asyncio.to_thread(group.start, max(1.0, deadline - began))
            except MedusaError as latest:
                logger.error("generation %d failed to start: %s", self._generation, latest)
                error = latest
                continue
            self._watch.on_start(group.seconds)
            logger.info("generation %d is ready after %.1f s", self._generation, time.monotonic() - failed_at)
            return group
        if self._group is not None:
            await asyncio.to_thread(self._group.kill)
        self._give_up(GroupError(f"no group decoded within timeouts.restart_s; last error: {error}"))
        return None

    def _give_up(self, error: MedusaError) -> None:
        self._over = error
        self.trouble = str(error)
        for pending in self._pending.values():
            if not pending.is_over:
                pending.fail(error)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            logger.error("the supervisor failed", exc_info=error)
            self._give_up(GroupError(f"the supervisor failed: {error}"))

    # The four tasks of a generation

    async def _read(self, group: TPWorkerGroup) -> None:
        number = 0
        async for ref in group.batches():
            batch: OutputBatch = await ref
            if (batch.generation, batch.number) != (self._generation, number):
                raise GroupError(f"output batch {batch.number} of generation {batch.generation} arrived as {number}")
            number, self._num_silent, self.stats = number + 1, 0, batch.stats
            if batch.age_s > self._config.timeouts.step_s + GRACE_S:
                raise GroupError(f"rank 0 has been in one step for {batch.age_s:.0f} s (timeouts.step_s)")
            for message in batch.messages:
                self._deliver(message)
            if batch.messages or not self._pending:
                self._down_since = None  # it decodes, or is idle: the next failure is a new one
            self._watch.on_batch(batch, len(self._pending))

    async def _send(self, group: TPWorkerGroup) -> None:
        while True:
            commands = [await self._commands.get()]
            while not self._commands.empty():
                commands.append(self._commands.get_nowait())
            await group.post(commands)

    async def _await_end(self, group: TPWorkerGroup) -> None:
        ends = [asyncio.wrap_future(ref.future()) for ref in group.lives]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*[end for end in ends if end.done()], return_exceptions=True)

    async def _patrol(self) -> None:
        """Count silence in iterations, not seconds: a replica that was itself blocked must not blame the group."""
        timeouts = self._config.timeouts
        limit_s = min(SILENCE_S, max(3.0, timeouts.step_s))
        while True:
            await asyncio.sleep(PATROL_S)
            self._num_silent += 1
            if self._num_silent * PATROL_S > limit_s:
                raise GroupError(f"rank 0 did not respond for {self._num_silent * PATROL_S:g} s")
            now = time.monotonic()
            for pending in self._pending.values():
                since = pending.waiting_since
                if since is not None and now - since > timeouts.stall_s and not pending.is_over:
                    pending.fail(EngineError(f"the client read nothing for {timeouts.stall_s:g} s (timeouts.stall_s)"))
                    self._tell(Abort(pending.request.request_id))
