"""Calls inside the replica wait while it is full, but not for ever."""

from types import SimpleNamespace

import pytest

from medusa_dist.api import in_process_client as module
from medusa_dist.api.in_process_client import Inside
from medusa_dist.api.routes import build_api
from medusa_dist.errors import OverloadedError
from tests.support.fake_service import FakeService, completion


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """What was waited, on a clock that only waiting moves."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: sum(waited)))
    monkeypatch.setattr(module, "BUSY_S", 60.0)
    return waited


class Full(FakeService):
    """Refuses the first `refusals` requests."""

    refusals = 3

    async def generate(self, request):
        self.refusals -= 1
        if self.refusals >= 0:
            raise OverloadedError("full", retry_after_s=2.0)
        async for output in super().generate(request):
            yield output


async def test_a_line_waits_while_the_service_is_full(waits):
    service = Full()
    reply = await Inside(build_api(lambda: service)).post("/v1/completions", completion())
    assert reply.status == 200 and len(waits) == 3 and all(1.0 <= wait <= 2.0 for wait in waits)


async def test_a_service_that_stays_full_is_the_lines_answer_after_busy_s(waits):
    service = FakeService()
    service.num_places = 0
    reply = await Inside(build_api(lambda: service)).post("/v1/completions", completion())
    assert reply.status == 429 and reply.body["error"]["type"] == "rate_limit_error"
    assert module.BUSY_S <= sum(waits) <= module.BUSY_S + module.MAX_WAIT_S
