"""Sends batch lines over HTTP to a medusa_dist service at a URL. Needs no Ray.

Owns the client: concurrency, and waiting for a full or lost service. Not here: what is done with the responses
(passes.py).
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx

from medusa_dist.api.in_process_client import BUSY_S
from medusa_dist.batch.passes import Deliver
from medusa_dist.config_parts.http import API_KEY_VARIABLE
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.storage.batch_lines import BatchLine, LineAnswer, no_response

PATIENCE_S = 120.0  # how long to retry a service that cannot be reached
FIRST_PAUSE_S = 1.0
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
        self._heard_at = 0.0  # when the service last responded to any line

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
        """See passes.Sender. Raises EngineError if the service cannot be reached for PATIENCE_S."""
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
        """Process one line. Waits BUSY_S while the service is full, and PATIENCE_S while there is no response.

        Then the line fails if others got a response meanwhile; otherwise the service cannot be reached: EngineError.
        """
        content = json.dumps(line.body).encode()  # ASCII: a text may be no valid Unicode
        pause_s, busy_since, lost_since = FIRST_PAUSE_S, None, None
        while True:
            now = time.monotonic()
            try:
                response = await client.post(f"{self._url}{line.url}", content=content, headers=_JSON)
            except httpx.TransportError as error:
                why: str | None = str(error) or type(error).__name__
            else:
                why = None if response.status_code not in _GATEWAY or _has_json(response) else _status(response)
            if why is None:
                self._heard_at, lost_since = time.monotonic(), None
                busy_since = busy_since or now
                if response.status_code < 400 and not _has_json(response):
                    return no_response(line.id, line.custom_id, _status(response))
                if response.status_code != 429 or now - busy_since > BUSY_S:
                    request_id = response.headers.get("x-request-id", "")
                    return LineAnswer(line.id, line.custom_id, response.status_code, request_id, _body(response))
            else:
                lost_since = lost_since or now
                if time.monotonic() - lost_since > PATIENCE_S:
                    if self._heard_at > lost_since:
                        return no_response(line.id, line.custom_id, f"no response in {PATIENCE_S:g} s: {why}")
                    raise EngineError(
                        f"{self._url} could not be reached for {PATIENCE_S:g} s: {why}; use --resume to continue"
                    )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)


_JSON = {"content-type": "application/json"}
_GATEWAY = (502, 503, 504)  # without JSON, from a proxy that does not reach the service


def _has_json(response: httpx.Response) -> bool:
    try:
        return isinstance(response.json(), dict)
    except ValueError:
        return False


def _status(response: httpx.Response) -> str:
    return f"status {response.status_code} without a JSON object: {response.text[:200]!r}"


def _body(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a response; for one without, such as a proxy's page, an error that quotes it."""
    if _has_json(response):
        return dict(response.json())
    return {"error": {"message": _status(response), "type": "invalid_response", "param": None, "code": None}}
