"""In-process client: calls the API routes without a socket, with the same responses as over HTTP.

Owns the call and its retries on 429. Not here: which lines a batch job sends, and what it does with them (batch/).
"""

import asyncio
import random
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from fastapi import FastAPI

MAX_WAIT_S = 5.0  # between two attempts while the service is full


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

    async def post(self, path: str, body: Any) -> InProcessReply:
        """Make one call. Waits and retries while the service is full (429), since batch lines are not urgent."""
        while True:
            response = await self._client.post(path, json=body)
            if response.status_code != 429:
                return InProcessReply(response.status_code, response.headers["x-request-id"], response.json())
            hint_s = float(response.headers.get("retry-after", 1))
            await asyncio.sleep(min(hint_s, MAX_WAIT_S) * random.uniform(0.5, 1.0))
