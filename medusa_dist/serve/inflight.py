"""InflightRequest: a request in the replica, with undelivered output and delivered tokens.

Owns the record that survives a failure of the group. Not here: delivering outputs to it (supervisor.py), text and HTTP
(api/). Belongs to one event loop.
"""

import asyncio
import logging

from medusa_dist.engine.messages import Submit
from medusa_dist.errors import EngineError, MedusaError
from medusa_dist.outputs import Output
from medusa_dist.request import Request

logger = logging.getLogger("ray.serve")

MAX_FAILURES = 3  # consecutive group failures without a new token of this request


class InflightRequest:
    """Outputs of one request between the engine and its client.

    Outputs are merged while the client does not read, so at most one Output is pending.
    """

    def __init__(self, request: Request, now: float) -> None:
        self.request = request
        self.asked_at = now
        self.first_token_at: float | None = None
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
            self.first_token_at = self.first_token_at or now
            self.last_token_at = now
            self._num_failures = 0
        if self._waiting is None:
            self.waiting_since = now
        self._output_ids += output.token_ids
        self._waiting = output if self._waiting is None else self._waiting.merged(output)
        self.outcome = output.finish_reason
        self._changed.set()

    def log_end(self, log_format: str, now: float) -> None:
        """Log the end of the request, for the config's log_format: json. No text."""
        if log_format != "json":
            return
        first_s = None if self.first_token_at is None else round(self.first_token_at - self.asked_at, 4)
        fields = {
            "request": self.request.request_id,
            "reason": self.outcome or "cancelled",
            "prompt_tokens": len(self.request.prompt_ids),
            "output_tokens": len(self._output_ids),
            "first_token_s": first_s,
            "seconds": round(now - self.asked_at, 4),
        }
        logger.info("a request ended", extra=fields)

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
