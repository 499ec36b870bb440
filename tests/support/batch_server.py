"""Routes, store and worker of batches over a service, as a replica has them; also as a process of its own to kill.

python -m tests.support.batch_server FOLDER PAUSE_S
"""

import asyncio
import math
import time
from collections import Counter

from medusa_dist.api.batches.low_priority import LowPriority
from medusa_dist.api.batches.run import Lines
from medusa_dist.api.batches.worker import BatchWorker
from medusa_dist.api.in_process_client import Inside
from medusa_dist.api.routes import build_api
from medusa_dist.config_parts.files import FilesConfig
from medusa_dist.storage.store import open_store

POLL_S = 0.02


class Counts:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.lines, self.ended, self.states = Counter(), Counter(), {}

    def on_batches(self, states):
        self.states = states

    def on_batch_line(self, is_ok):
        self.lines[is_ok] += 1

    def on_batch_end(self, status):
        self.ended[status] += 1


def store_in(folder, **keys):
    store = open_store(FilesConfig(store=str(folder), **keys), "m")
    store.files.folder.poll_s = POLL_S  # both stores have the same folder
    return store


def worker_of(store, service, num_places=4, observer=None):
    """A worker over the routes of a service, as in app.py. Calls that it makes are in `sent`."""
    behind = LowPriority(service, num_places, 1000)
    inside = Inside(build_api(lambda: behind))
    sent = []

    async def send(url, body):
        sent.append((url, body))
        return await inside.post(url, body, busy_s=math.inf)

    lines = Lines(send, lambda: service.health().ok, asyncio.Semaphore(num_places))
    counts = observer or Counts()
    worker = BatchWorker(store, lines, counts)
    worker.sent, worker.counts = sent, counts
    return worker


class Application:
    """The routes, with a worker from the start of the server to its end."""

    def __init__(self, service, store, **keys):
        self.api = build_api(lambda: service, store=store, **keys)
        self.service, self.store = service, store
        self.worker = None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            await self.api(scope, receive, send)
            return
        await receive()
        self.worker = worker_of(self.store, self.service)
        self.worker.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.worker.stop()
        await send({"type": "lifespan.shutdown.complete"})


def wait_until(condition, seconds=20.0):
    """Poll until a condition gives something; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found
