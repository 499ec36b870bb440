"""One running HTTP call: its requests to the service, their text, and client disconnects.

Owns the tasks of a call; no request outlives its call. Not here: the response format (response_builder.py).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Self

from starlette.types import Receive

from medusa_dist.api.beams import split_choices
from medusa_dist.api.service import Service
from medusa_dist.errors import EngineError, OverloadedError
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.request import Request
from medusa_dist.text.text_stream import TextDelta, TextStream

PLACE_S = 0.1  # between two attempts of a later request; well below what refused clients wait before theirs


class ClientGone(Exception):
    """The client closed the connection; no response is needed."""


class Call:
    """All choices of one call, decoded concurrently.

    The call is admitted with its first request. At most `service.requests_per_call` of its requests are at the service
    at a time, so that a large call leaves room for others; the rest follow in order, each as soon as there is a place.
    streams: the text of each choice; the same number for each request, one unless it is a beam search. `next` returns
    deltas as they arrive, with all choices interleaved. One delta is buffered: if the client does not read, the call
    stops pulling and the service merges the outputs that accumulate.
    Must be closed (or used in `async with`), which aborts the requests that still run.
    """

    def __init__(self, service: Service, requests: Sequence[Request], streams: Sequence[TextStream]) -> None:
        self.streams = tuple(streams)
        self._service = service
        self._requests = tuple(requests)
        self._events: asyncio.Queue[tuple[int, TextDelta] | Exception] = asyncio.Queue(maxsize=1)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_open = len(self.streams)
        self._places = asyncio.Semaphore(service.requests_per_call)

    def start(self, receive: Receive) -> None:
        """Send all requests, and watch `receive` (ASGI, after the body was read) for a disconnect."""
        pumps = [asyncio.create_task(self._pump(i)) for i in range(len(self._requests))]
        self._tasks = [*pumps, asyncio.create_task(self._watch(receive, pumps))]

    @property
    def is_open(self) -> bool:
        """False once every choice has returned its last delta."""
        return self._num_open > 0

    async def next(self, timeout_s: float | None = None) -> tuple[int, TextDelta] | None:
        """The next (choice, delta); None after a timeout. Raises the first error of any choice, or ClientGone."""
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
        """Abort the requests that still run. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            # Not gather: if this wait is cancelled too, gather would cancel the tasks again while they clean up.
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _pump(self, index: int) -> None:
        """Run one request when it is its turn, and pass its outputs or its error to `next`."""
        try:
            async with self._places:
                while True:
                    try:
                        return await self._decode(index)
                    except OverloadedError:
                        if index == 0:
                            raise  # the call as a whole is refused
                    await asyncio.sleep(PLACE_S)
        except Exception as error:  # noqa: BLE001 - passed to `next`, which raises it
            await self._events.put(error)

    async def _decode(self, index: int) -> None:
        """Pass one request's outputs, as text, to `next`. A stop string ends the request and aborts the rest."""
        num_each = len(self.streams) // len(self._requests)
        async with aclosing(self._outputs(index)) as outputs:
            async for output in outputs:
                if output.finish_reason is FinishReason.ABORT:
                    raise EngineError("the service aborted this request; send it again")
                for choice, part in enumerate(split_choices(output, num_each), index * num_each):
                    delta = self._push(choice, part)
                    await self._events.put((choice, delta))
                if delta.finish_reason is not None:
                    return
        raise EngineError("the service ended this request early; send it again")

    def _outputs(self, index: int) -> AsyncGenerator[Output, None]:
        """The outputs of one request."""
        return self._service.generate(self._requests[index])

    def _push(self, choice: int, part: Output) -> TextDelta:
        """What an output adds to the text of a choice."""
        return self.streams[choice].push(part)

    async def _watch(self, receive: Receive, pumps: Sequence[asyncio.Task[None]]) -> None:
        """Stop everything when the client disconnects. Servers do not cancel the handlers of unstreamed responses."""
        event: Exception = ClientGone()
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception as error:  # noqa: BLE001 - passed on, as above
            event = error
        for pump in pumps:
            pump.cancel()
        await self._events.put(event)
