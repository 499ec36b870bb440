"""Outputs on their way from the engine thread to the output stream.

Owns merging and the bound per request. Not here: the threads (loop.py), the stream itself (serve/rank.py).
The engine never blocks here: while the reader is busy, the outputs of a request are merged into one. A request whose
merged output exceeds `max_tokens` for longer than `stall_s` is reported by `stalled`, so memory stays bounded.
"""

import threading
import time
from collections.abc import Callable, Iterable

from medusa_dist.engine.messages import EngineMessage, Refusal
from medusa_dist.outputs import Output


class Outbox:
    """A queue that never blocks its writer and holds at most one message per request.

    max_tokens: most tokens that may wait for one request. stall_s: seconds above that limit before `stalled` reports
    it.
    """

    def __init__(self, max_tokens: int, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_tokens = max_tokens
        self._stall_s = stall_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[str, EngineMessage] = {}
        self._over_since: dict[str, float] = {}
        self._closed = False

    def put(self, messages: Iterable[EngineMessage]) -> None:
        """Add messages; an Output is merged with the one that waits for the same request. Never blocks."""
        with self._changed:
            for new in messages:
                waiting = self._waiting.get(new.request_id)
                message = waiting.merged(new) if isinstance(waiting, Output) and isinstance(new, Output) else new
                if isinstance(message, Output) and message.error is not None:
                    message = Refusal(message.request_id, message.error)
                self._waiting[message.request_id] = message
                if isinstance(message, Output) and len(message.token_ids) > self._max_tokens:
                    self._over_since.setdefault(message.request_id, self._clock())
            self._changed.notify()

    def take(self, timeout_s: float) -> list[EngineMessage]:
        """All waiting messages, requests in the order of their first put; empty after timeout_s or when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            messages = list(self._waiting.values())
            self._waiting.clear()
            self._over_since.clear()
            return messages

    def stalled(self) -> list[str]:
        """Ids of unfinished requests above the limit for longer than stall_s; each is reported once."""
        with self._changed:
            deadline = self._clock() - self._stall_s
            ids = [i for i, since in self._over_since.items() if since <= deadline and not self._is_final(i)]
            for request_id in ids:
                del self._over_since[request_id]
            return ids

    def _is_final(self, request_id: str) -> bool:
        message = self._waiting[request_id]
        return isinstance(message, Refusal) or message.finish_reason is not None

    def close(self) -> None:
        """No more messages will come. Wakes the reader, which may still take those that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """True once closed and empty."""
        with self._changed:
            return self._closed and not self._waiting
