"""InflightRequest: a request in the replica, its undelivered output and its delivered tokens.

Owns the record that survives a failure of the group. Not here: delivering outputs to it (supervisor.py), text and HTTP
(api/). Belongs to one event loop.
"""

import asyncio

from medusa_dist.engine.messages import Submit
from medusa_dist.errors import EngineError, MedusaError
from medusa_dist.outputs import Output
from medusa_dist.request import Request

MAX_FAILURES = 3  # consecutive group failures without a new token of this request


class InflightRequest:
    """Outputs of one request between the engine and its client.

    Outputs are merged while the client does not read, so at most one Output is pending.
    """

    def __init__(self, request: Request, now: float) -> None:
        self.request = request
        self.asked_at = now
        self.last_token_at: float | None = None
        self.waiting_since: float | None = None
        self.outcome: str | None = None  # set when the request has ended: the finish reason, or "error"
        self.is_submitted = False  # to the current group
        self._output_ids: list[int] = []
        self._waiting: Output | None = None
        self._error: MedusaError | None = None
        self._changed = asyncio.Event()
        self._num_failures = 0  # since the last token

    @property
    def is_over(self) -> bool:
        """True once the request has ended; a pending output can still be taken."""
        return self.outcome is not None

    @property
    def is_suspect(self) -> bool:
        """True if the group failed so often while it ran that its next attempt must run alone, to find the cause."""
        return self._num_failures == MAX_FAILURES - 1 and not self.is_over

    def submission(self) -> Submit:
        """The command that continues this request in an engine after its last delivered token."""
        self.is_submitted = True
        return Submit(self.request, tuple(self._output_ids))

    def deliver(self, output: Output, now: float) -> None:
        """Add an output of the engine."""
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
        """End the request; `take` raises the error after any pending output."""
        self._error = error
        self.outcome = "error"
        self._changed.set()

    def record_failure(self) -> None:
        """Count a failure of the group; after MAX_FAILURES without a new token, the request fails."""
        self._num_failures += self.is_submitted
        self.is_submitted = False
        if self._num_failures >= MAX_FAILURES and not self.is_over:
            self.fail(EngineError(f"the engine failed {self._num_failures} times in a row while this request ran"))

    async def take(self) -> Output:
        """Wait for the output since the last take. Raises the error passed to `fail`."""
        while self._waiting is None and self._error is None:
            self._changed.clear()
            await self._changed.wait()
        if self._waiting is None:
            assert self._error is not None
            raise self._error
        output, self._waiting, self.waiting_since = self._waiting, None, None
        return output
