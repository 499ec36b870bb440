"""BatchWorker: runs the open batches of a store, in one process at a time.

Owns the lock, which batches run, and retries after trouble. Not here: one batch (run.py), where batches are kept
(storage/). Every replica has a worker; the one with the store's lock works, the others wait for it.
"""

import asyncio
import logging
import time
from collections import Counter

from medusa_dist.api.batches.in_thread import in_thread
from medusa_dist.api.batches.run import BatchRun, Lines, Observer
from medusa_dist.errors import StorageError
from medusa_dist.storage.batch_store import OpenBatch
from medusa_dist.storage.folder import Lock
from medusa_dist.storage.store import Store

logger = logging.getLogger("ray.serve")

MAX_ACTIVE = 8  # batches that run side by side; the others stay in validating
PAUSES_S = (1.0, 5.0, 20.0, 60.0)  # after trouble, before a batch is taken up again
MAX_BUGS = 3  # then the batch fails
SWEEP_S = 600.0


class BatchWorker:
    """One worker of this process."""

    def __init__(self, store: Store, lines: Lines, observer: Observer) -> None:
        self._store, self._lines, self._observer = store, lines, observer
        self._folder = store.batches.folder
        self._task: asyncio.Task[None] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, BatchRun] = {}
        self._swept_at: float | None = None

    def start(self) -> None:
        """Begin to work, or to wait for the lock."""
        self._task = asyncio.create_task(self._wait_and_work())

    async def stop(self) -> None:
        """Stop, and give the lock back. Lines in flight are aborted and processed again by the next worker."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _wait_and_work(self) -> None:
        lock = self._folder.alone()
        while True:
            try:
                if await in_thread(lock.acquire):
                    try:
                        await self._work(lock)
                    finally:
                        await in_thread(lock.release)
            except StorageError as error:
                logger.warning("batches: %s", error.message)
            except Exception:
                logger.exception("batches: the worker failed, and starts again")
            await asyncio.sleep(self._folder.poll_s)

    async def _work(self, lock: Lock) -> None:
        """Run batches as long as the lock is held."""
        try:
            while await in_thread(lock.renew):
                await self._look()
                await asyncio.sleep(self._folder.poll_s)
        finally:
            tasks, self._tasks, self._runs = [*self._tasks.values()], {}, {}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._observer.on_batches({})

    async def _look(self) -> None:
        """Start what can start; count; clean up from time to time."""
        self._tasks = {name: task for name, task in self._tasks.items() if not task.done()}
        self._runs = {name: run for name, run in self._runs.items() if name in self._tasks}
        marks = await in_thread(lambda: list(self._store.batches.open_batches()))
        for mark in marks:
            if mark.id not in self._tasks and len(self._tasks) < MAX_ACTIVE:
                self._tasks[mark.id] = asyncio.create_task(self._run(mark))
        states = Counter(self._runs[mark.id].status if mark.id in self._runs else "validating" for mark in marks)
        self._observer.on_batches(dict(states))
        if self._swept_at is None or time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            await in_thread(
                self._store.files.sweep, lambda tenant, name: self._store.batches.uses(tenant, name) is not None
            )

    async def _run(self, mark: OpenBatch) -> None:
        """Run a batch to its end, again after trouble. A store that cannot be written is waited for."""
        num_bugs = num_troubles = 0
        while True:
            run = self._runs[mark.id] = BatchRun(self._store, mark, self._lines, self._observer)
            try:
                if num_bugs < MAX_BUGS:
                    return await run.run()
                return await run.fail("internal_error", "the batch failed by a bug; the log of the service has it")
            except StorageError as error:
                logger.warning("batch %s waits: %s", mark.id, error.message)
                await run.note_trouble(error.message)
            except FileNotFoundError as error:
                logger.warning("batch %s: a file is gone: %s", mark.id, error)
                num_bugs += 1
            except Exception:
                logger.exception("batch %s failed, and is taken up again", mark.id)
                num_bugs += 1
            await asyncio.sleep(PAUSES_S[min(num_troubles, len(PAUSES_S) - 1)])
            num_troubles += 1
