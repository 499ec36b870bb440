"""Calls to the API from inside its own process, without a socket: batch lines get the answers that HTTP gives.

Owns the way in. Not here: which lines a job sends, and what it does with their answers (jobs/).
"""

import asyncio
import random
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from fastapi import FastAPI

MAX_WAIT_S = 5.0  # between two tries at a full service


@dataclass(frozen=True, slots=True)
class InProcessReply:
    """What HTTP would have sent. body: the JSON."""

    status: int
    request_id: str
    body: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Inside:
    """The routes of an application. Cancelling a call aborts its request, as a client's going does."""

    def __init__(self, app: FastAPI) -> None:
        # raise_app_exceptions: an error of the application is a 500 here as well, not an exception of the caller.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://inside", timeout=None)

    async def post(self, path: str, body: Any) -> InProcessReply:
        """One call. While the service is full (429) it waits and tries again: a batch line has time."""
        while True:
            answer = await self._client.post(path, json=body)
            if answer.status_code != 429:
                return InProcessReply(answer.status_code, answer.headers["x-request-id"], answer.json())
            hint_s = float(answer.headers.get("retry-after", 1))
            await asyncio.sleep(min(hint_s, MAX_WAIT_S) * random.uniform(0.5, 1.0))
