"""Sends batch lines over HTTP to a medusa_dist service at a URL. Needs no Ray.

Owns the client: concurrency and retries. Not here: what is done with the responses (job.py).
"""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx

from medusa_dist.batch.files import BatchLine, LineAnswer
from medusa_dist.batch.job import Deliver
from medusa_dist.errors import ConfigError, EngineError

API_KEY_VARIABLE = "MEDUSA_DIST_API_KEY"
PATIENCE_S = 120.0  # how long to retry a service that cannot be reached
MAX_PAUSE_S = 10.0
FILL = 3  # calls in flight, in batches: one is decoded, the others wait at the service to keep it full


class HttpSender:
    """url: of the service, without /v1. concurrency: calls in flight; None: enough to keep the service full."""

    def __init__(self, url: str, concurrency: int | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._concurrency = concurrency
        key = os.environ.get(API_KEY_VARIABLE)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._facts: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        """The data of /v1/models. Raises ConfigError if there is no service, or if it needs another API key."""
        try:
            response = httpx.get(f"{self._url}/v1/models", headers=self._headers, timeout=30.0)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ConfigError(f"--address {self._url}: no service responds at this URL: {error}") from None
        if response.status_code == 401:
            raise ConfigError(f"--address {self._url}: the API key is missing or wrong; set {API_KEY_VARIABLE}")
        try:
            self._facts = dict(response.json()["data"][0])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(
                f"--address {self._url}: /v1/models returned status {response.status_code} and no model; check the URL"
            ) from None
        return self._facts

    @property
    def window(self) -> int:
        """Calls in flight."""
        return self._concurrency or FILL * int(self._facts.get("max_running", 16))

    def send(self, lines: Iterator[BatchLine], deliver: Deliver) -> None:
        """See job.Sender. Raises EngineError if the service cannot be reached for PATIENCE_S."""
        asyncio.run(self._send(lines, deliver))

    async def _send(self, lines: Iterator[BatchLine], deliver: Deliver) -> None:
        limits = httpx.Limits(max_connections=self.window, max_keepalive_connections=self.window)
        timeout = httpx.Timeout(60.0, read=None)  # a response may take any time; a dead peer resets the connection
        async with httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout) as client:

            async def work() -> None:
                for line in lines:  # shared: each worker takes the next line
                    deliver(await self._answer(client, line))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.window):
                        group.create_task(work())
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _answer(self, client: httpx.AsyncClient, line: BatchLine) -> LineAnswer:
        """Process one line. Waits while the service is full, and up to PATIENCE_S while it cannot be reached."""
        pause_s, lost_since = 1.0, None
        while True:
            try:
                response = await client.post(f"{self._url}{line.url}", json=line.body)
                body = response.json()
            except (httpx.TransportError, ValueError) as error:
                now = time.monotonic()
                lost_since = lost_since or now
                if now - lost_since > PATIENCE_S:
                    raise EngineError(
                        f"{self._url} could not be reached for {PATIENCE_S:g} s: {error or type(error).__name__}; "
                        "use --resume to continue"
                    ) from None
            else:
                if response.status_code != 429:
                    request_id = response.headers.get("x-request-id", "")
                    return LineAnswer(line.id, line.custom_id, response.status_code, request_id, body)
                lost_since = None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
