"""One request at the front: what came for it, what its client has taken.

Owns the record that survives the fall of a group. Not here: who feeds it (supervisor.py), text and HTTP (api).
Belongs to one event loop.
"""

import asyncio

from medusa_dist.engine.messages import Submit
from medusa_dist.errors import EngineError, MedusaError
from medusa_dist.outputs import Output
from medusa_dist.request import Request

MAX_FAILURES = 3  # of the group, one after the other, without a single new token of this request


class InflightRequest:
    """Outputs of one request on their way to its client.

    A client that does not read makes them merge, so at most one Output waits here.
    """

    def __init__(self, request: Request, now: float) -> None:
        self.request = request
        self.asked_at = now
        self.last_token_at: float | None = None
        self.waiting_since: float | None = None
        self.outcome: str | None = None  # once nothing more will come: the finish reason, or "error"
        self.is_submitted = False  # the current group has it
        self._output_ids: list[int] = []
        self._waiting: Output | None = None
        self._error: MedusaError | None = None
        self._changed = asyncio.Event()
        self._num_failures = 0  # since its last token

    @property
    def is_over(self) -> bool:
        """True once nothing more will come; what waits can still be taken."""
        return self.outcome is not None

    @property
    def is_suspect(self) -> bool:
        """True if the group fell under it so often that it must prove alone that it is not the cause."""
        return self._num_failures == MAX_FAILURES - 1 and not self.is_over

    def submission(self) -> Submit:
        """The command that makes an engine go on where the last one ended."""
        self.is_submitted = True
        return Submit(self.request, tuple(self._output_ids))

    def deliver(self, output: Output, now: float) -> None:
        """An output of the engine."""
        if output.token_ids:
            self.last_token_at = now
            self._num_failures = 0
        if self._waiting is None:
            self.waiting_since = now
        self._output_ids += output.token_ids
        self._waiting = output if self._waiting is None else self._waiting.merged(output)
        self.outcome = output.finish_reason
        self._changed.set()

    def fail(self, error: MedusaError) -> None:
        """Nothing more will come; `take` raises the error after what waits."""
        self._error = error
        self.outcome = "error"
        self._changed.set()

    def record_failure(self) -> None:
        """The group is gone; a request that was with it fails if that keeps happening before it gets a token."""
        self._num_failures += self.is_submitted
        self.is_submitted = False
        if self._num_failures >= MAX_FAILURES and not self.is_over:
            self.fail(EngineError(f"the engine fell {self._num_failures} times in a row while this request ran"))

    async def take(self) -> Output:
        """What came since the last take; waits for it. Raises what `fail` was given."""
        while self._waiting is None and self._error is None:
            self._changed.clear()
            await self._changed.wait()
        if self._waiting is None:
            assert self._error is not None
            raise self._error
        output, self._waiting, self.waiting_since = self._waiting, None, None
        return output
