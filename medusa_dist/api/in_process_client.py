"""In-process API client: calls the routes without a socket, with the responses of HTTP.

Owns the call and its retries on 429. Not here: which lines a batch job sends, and what it does with them (batch/).
"""

import asyncio
import json
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from fastapi import FastAPI

MAX_WAIT_S = 5.0  # between two attempts while the service is full
BUSY_S = 1800.0  # then the refusal is the response: batch lines are not urgent, but every line must end


@dataclass(frozen=True, slots=True)
class InProcessReply:
    """The HTTP response. body: parsed JSON."""

    status: int
    request_id: str
    body: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


class Inside:
    """Client for the routes of an application. Cancelling a call aborts its request, like a disconnect."""

    def __init__(self, app: FastAPI) -> None:
        # raise_app_exceptions=False: an application error becomes a 500 response here too, not an exception.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://inside", timeout=None)

    async def post(self, path: str, body: Any, busy_s: float | None = None) -> InProcessReply:
        """Make one call. Waits and retries while the service is full (429), for busy_s (None: BUSY_S)."""
        content = json.dumps(body).encode()  # ASCII: a text may be no valid Unicode
        began = time.monotonic()
        while True:
            response = await self._client.post(path, content=content, headers={"content-type": "application/json"})
            if response.status_code != 429 or time.monotonic() - began >= (BUSY_S if busy_s is None else busy_s):
                return InProcessReply(response.status_code, response.headers["x-request-id"], response.json())
            hint_s = float(response.headers.get("retry-after", 1))
            await asyncio.sleep(min(hint_s, MAX_WAIT_S) * random.uniform(0.5, 1.0))
