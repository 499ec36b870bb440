"""LowPriority: the service as batches see it, where their requests come after all others.

Owns the priority of batch lines and how many of their requests are at the service. Not here: lines (run.py).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from medusa_dist.api.service import Service
from medusa_dist.outputs import Output
from medusa_dist.request import MAX_PRIORITY, Request

BATCH_PRIORITY = 2**30
FREE_SHARE = 4  # one row in so many of the batch is left to other requests: a request that waits preempts none
PAUSE_S = 0.05  # between two looks for a free row


def places(max_running: int, max_queued: int) -> int:
    """Requests of batches that may be at a replica at a time, at least 1.

    Fewer than the rows of its batch, so that other requests start at once; at most half of the requests that it admits.
    """
    free = -(-max_running // FREE_SHARE)
    return max(1, min(max_running - free, (max_running + max_queued) // 2))


def batch_priority(own: int) -> int:
    """The priority of a line's request: behind interactive ones. own: the line's, among lines."""
    return min(MAX_PRIORITY, max(1, BATCH_PRIORITY + own))


class LowPriority:
    """A Service that is another one, except for `generate`.

    num_places: requests at a time, however many choices. max_running: no request begins while the service has as many.
    """

    def __init__(self, service: Service, num_places: int, max_running: int) -> None:
        self._service = service
        self._places = asyncio.Semaphore(num_places)
        self._max_running = max_running

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """See Service."""
        behind = replace(request, priority=batch_priority(request.priority))
        async with self._places:
            while self._service.num_requests >= self._max_running:
                await asyncio.sleep(PAUSE_S)
            async with aclosing(self._service.generate(behind)) as outputs:
                async for output in outputs:
                    yield output
