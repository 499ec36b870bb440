"""One HTTP call while it runs: its requests to the service, their text, and the client's presence.

Owns tasks and their end: whatever happens, no request outlives its call. Not here: words and shapes (answers.py).
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Self

from starlette.types import Receive

from medusa_dist.api.beams import split_choices
from medusa_dist.api.service import Service
from medusa_dist.errors import EngineError
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from medusa_dist.text.text_stream import TextDelta, TextStream


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Call:
    """All choices of one call, decoded side by side.

    streams: text of each choice; the same number for each request, one unless it is a beam search. `next` gives deltas
    as they come, of all choices interleaved. One delta is buffered: a client that does not read stops the pull, and the
    service merges what piles up.
    Must be closed (or used in `async with`): that aborts what still runs.
    """

    def __init__(self, service: Service, requests: Sequence[Request], streams: Sequence[TextStream]) -> None:
        self.streams = tuple(streams)
        self._service = service
        self._requests = tuple(requests)
        self._events: asyncio.Queue[tuple[int, TextDelta] | Exception] = asyncio.Queue(maxsize=1)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_open = len(self.streams)

    def start(self, receive: Receive) -> None:
        """Send all requests, and watch `receive` (ASGI, after the body was read) for the client's going."""
        pumps = [asyncio.create_task(self._pump(i)) for i in range(len(self._requests))]
        self._tasks = [*pumps, asyncio.create_task(self._watch(receive, pumps))]

    @property
    def is_open(self) -> bool:
        """False once every choice has given its last delta."""
        return self._num_open > 0

    async def next(self, timeout_s: float | None = None) -> tuple[int, TextDelta] | None:
        """The next (choice, delta); None if nothing came in time. Raises the first error of any choice, ClientGone."""
        try:
            async with asyncio.timeout(timeout_s):
                event = await self._events.get()
        except TimeoutError:
            return None
        if isinstance(event, Exception):
            raise event
        self._num_open -= event[1].finish_reason is not None
        return event

    async def close(self) -> None:
        """Abort what still runs. May be called twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            # Not gather: if this wait is cancelled in turn, gather would cancel the tasks again, in the middle of
            # their own cleaning up.
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _pump(self, index: int) -> None:
        """Carry one request's outputs, as text, to `next`. A stop string ends it here and aborts the rest."""
        num_each = len(self.streams) // len(self._requests)
        try:
            async with aclosing(self._service.generate(self._requests[index])) as outputs:
                async for output in outputs:
                    if output.finish_reason is FinishReason.ABORT:
                        raise EngineError("the service gave this request up; send it again")
                    for choice, part in enumerate(split_choices(output, num_each), index * num_each):
                        delta = self.streams[choice].push(part)
                        await self._events.put((choice, delta))
                    if delta.finish_reason is not None:
                        return
            raise EngineError("the service ended this request early; send it again")
        except Exception as error:  # noqa: BLE001 - carried over to whoever awaits `next`, and raised there
            await self._events.put(error)

    async def _watch(self, receive: Receive, pumps: Sequence[asyncio.Task[None]]) -> None:
        """Stop everything when the client goes. Needed for whole answers: servers do not cancel their handlers."""
        event: Exception = ClientGone()
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception as error:  # noqa: BLE001 - carried over, as above
            event = error
        for pump in pumps:
            pump.cancel()
        await self._events.put(event)
