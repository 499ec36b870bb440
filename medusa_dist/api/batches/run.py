"""BatchRun: takes one batch through its states, from wherever an earlier process left it.

Owns validation, sending lines, and what ends a batch. Not here: which batches run (worker.py), output files
(outputs.py), the journal (storage/journal.py).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from medusa_dist.api.batches.in_thread import in_thread
from medusa_dist.api.batches.outputs import success_or_failure, write_outputs
from medusa_dist.api.batches.validate import batch_lines, check_lines
from medusa_dist.api.in_process_client import InProcessReply
from medusa_dist.errors import StorageError
from medusa_dist.storage.batch_lines import BatchLine, LineAnswer
from medusa_dist.storage.batch_record import BatchRecord, LineError, Status
from medusa_dist.storage.batch_store import OpenBatch
from medusa_dist.storage.file_store import PREFIX
from medusa_dist.storage.journal import Finished, Journal
from medusa_dist.storage.pages import new_id
from medusa_dist.storage.store import Store

UNPROCESSED = (502, 503, 504)  # another try may succeed
MAX_TRIES = 3  # of a line
PAUSE_S = 1.0  # between tries, and while the model restarts
End = Literal["cancelling", "expired"]


class Observer(Protocol):
    """Counts what happens to batches."""

    def on_batches(self, states: dict[str, int]) -> None:
        """The number of batches that are not over, by status."""

    def on_batch_line(self, is_ok: bool) -> None:
        """A line is finished."""

    def on_batch_end(self, status: str) -> None:
        """A batch is over."""


@dataclass(frozen=True, slots=True)
class Lines:
    """How lines are processed. send: calls a route. is_ready: whether the model decodes. places: lines in flight."""

    send: Callable[[str, dict[str, Any]], Awaitable[InProcessReply]]
    is_ready: Callable[[], bool]
    places: asyncio.Semaphore


class BatchRun:
    """One batch in this process. status: of the batch, for the count by status."""

    def __init__(self, store: Store, mark: OpenBatch, lines: Lines, observer: Observer) -> None:
        self._store, self._mark, self._lines, self._observer = store, mark, lines, observer
        self._batches = store.batches
        self._completed = self._failed = 0
        self.status = "validating"

    async def run(self) -> None:
        """Return when the batch is over. Raises StorageError; the next run goes on from there."""
        batch = await in_thread(self._batches.load, self._mark.tenant, self._mark.id)
        if batch is None:
            await in_thread(self._batches.drop_orphan, self._mark)
            return
        self.status = batch.status
        if not batch.is_over:
            if batch.status == "validating":
                batch = await self._validate(batch)
            if batch.status == "in_progress":
                batch = await self._process(batch)
            if batch.status in ("finalizing", "cancelling"):
                batch = await self._finish(batch)
            self._observer.on_batch_end(batch.status)
        await in_thread(self._batches.close, batch)

    async def fail(self, code: str, text: str) -> None:
        """End the batch with an error that is not about a line. Finished lines are in its files."""
        batch = await in_thread(self._batches.load, self._mark.tenant, self._mark.id)
        if batch is not None and not batch.is_over:
            if batch.total:
                batch = await in_thread(write_outputs, self._store, _with_ids(batch))
            batch = await self._save(batch.to("failed", self._batches.clock(), errors=(LineError(code, text),)))
            self._observer.on_batch_end(batch.status)
        if batch is not None:
            await in_thread(self._batches.close, batch)

    async def note_trouble(self, text: str) -> None:
        """Say in the batch why it does not go on, if even that can be written."""
        with suppress(StorageError):
            batch = await in_thread(self._batches.load, self._mark.tenant, self._mark.id)
            if batch is not None and not batch.is_over:
                await self._save(replace(batch, errors=(LineError("storage_unavailable", text),)))

    async def _save(self, batch: BatchRecord) -> BatchRecord:
        await in_thread(self._batches.save, batch)
        self.status = batch.status
        return batch

    async def _validate(self, batch: BatchRecord) -> BatchRecord:
        def check() -> tuple[int, list[LineError]]:
            try:
                with self._store.files.open(batch.tenant, batch.input_file_id) as file:
                    return check_lines(batch_lines(file, batch.id), batch.endpoint, self._batches.max_lines)
            except FileNotFoundError:
                return 0, [LineError("file_not_found", f"the input file {batch.input_file_id} is gone")]

        if await self._is_cancelled(batch):
            return await self._cancelling(batch)
        total, errors = await in_thread(check)
        now = self._batches.clock()
        if errors:
            return await self._save(batch.to("failed", now, errors=tuple(errors)))
        return await self._save(batch.to("in_progress", now, total=total))

    async def _is_cancelled(self, batch: BatchRecord) -> bool:
        return await in_thread(self._batches.cancel_asked_at, batch.tenant, batch.id) is not None

    async def _cancelling(self, batch: BatchRecord) -> BatchRecord:
        asked_at = await in_thread(self._batches.cancel_asked_at, batch.tenant, batch.id)
        return await self._save(_with_ids(batch.to("cancelling", asked_at or self._batches.clock())))

    async def _process(self, batch: BatchRecord) -> BatchRecord:
        """Send all lines that have no entry in the journal, until they are done, cancelled, or out of time."""
        journal = self._batches.journal(batch)
        done = await in_thread(self._read_journal, journal)
        work = asyncio.create_task(self._send_all(batch, journal, done))
        watch = asyncio.create_task(self._watch(batch))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            end = None if work.done() else watch.result()
            if work.done():
                work.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.wait({work, watch})
            await in_thread(journal.flush)
        if end == "cancelling":
            return await self._cancelling(batch)
        ended = batch.to("finalizing", self._batches.clock(), expired=end == "expired", errors=())
        return await self._save(_with_ids(ended))

    def _read_journal(self, journal: Journal) -> set[int]:
        """The numbers of finished lines; counts them."""
        done: set[int] = set()
        self._completed = 0
        for line in journal.lines():
            done.add(line.number)
            self._completed += line.is_ok
        self._failed = len(done) - self._completed
        return done

    async def _watch(self, batch: BatchRecord) -> End:
        """Return when the batch has to end early. Meanwhile the record gets the numbers of finished lines."""
        saved = (batch.completed, batch.failed)
        while True:
            if await self._is_cancelled(batch):
                return "cancelling"
            if self._batches.clock() >= batch.expires_at:
                return "expired"
            now = (self._completed, self._failed)
            if now != saved:
                await self._save(replace(batch, completed=now[0], failed=now[1], errors=()))
                saved = now
            await asyncio.sleep(self._batches.folder.poll_s)

    async def _send_all(self, batch: BatchRecord, journal: Journal, done: set[int]) -> None:
        places = self._lines.places
        try:
            async with asyncio.TaskGroup() as group, aclosing(self._unfinished(batch, done)) as lines:
                async for line in lines:
                    await places.acquire()
                    task = group.create_task(self._process_line(line, journal))
                    task.add_done_callback(lambda _: places.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _unfinished(self, batch: BatchRecord, done: set[int]) -> AsyncGenerator[BatchLine, None]:
        file = await in_thread(self._store.files.open, batch.tenant, batch.input_file_id)
        lines = batch_lines(file, batch.id)

        def following() -> BatchLine | None:
            return next((line for line in lines if line.number not in done), None)

        try:
            while (line := await in_thread(following)) is not None:
                yield line
        finally:
            file.close()

    async def _process_line(self, line: BatchLine, journal: Journal) -> None:
        assert line.body is not None
        reply = await self._answer(line.url, line.body)
        answer = LineAnswer(line.id, line.custom_id, reply.status, reply.request_id, reply.body)
        record = json.dumps(success_or_failure(answer), separators=(",", ":")).encode()
        await in_thread(journal.add, Finished(line.number, answer.is_ok, record))
        self._completed += answer.is_ok
        self._failed += not answer.is_ok
        self._observer.on_batch_line(answer.is_ok)

    async def _answer(self, url: str, body: dict[str, Any]) -> InProcessReply:
        for _ in range(MAX_TRIES):
            while not self._lines.is_ready():
                await asyncio.sleep(PAUSE_S)
            reply = await self._lines.send(url, body)
            if reply.status not in UNPROCESSED:
                break
            await asyncio.sleep(PAUSE_S)
        return reply

    async def _finish(self, batch: BatchRecord) -> BatchRecord:
        written = await in_thread(write_outputs, self._store, batch)
        end: Status = "cancelled" if batch.status == "cancelling" else "expired" if batch.expired else "completed"
        return await self._save(written.to(end, self._batches.clock(), errors=()))


def _with_ids(batch: BatchRecord) -> BatchRecord:
    """The batch with the ids of its files, chosen once."""
    return replace(batch, output_id=batch.output_id or new_id(PREFIX), error_id=batch.error_id or new_id(PREFIX))
