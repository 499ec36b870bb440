"""Lines of batches come after all other requests, and leave them room."""

import asyncio

import pytest

from medusa_dist.api.batches.low_priority import BATCH_PRIORITY, LowPriority, batch_priority, places
from medusa_dist.api.in_process_client import Inside
from medusa_dist.api.routes import build_api
from medusa_dist.request import MAX_PRIORITY
from tests.support.fake_service import FakeService, completion


@pytest.mark.parametrize(
    ("running", "queued", "expected"), [(16, 128, 16), (16, 16, 16), (16, 0, 8), (1, 0, 1), (4, 2, 3)]
)
def test_half_of_the_places_is_always_left_to_others(running, queued, expected):
    assert places(running, queued) == expected


def test_own_priority_orders_lines_among_each_other_and_never_before_others():
    assert batch_priority(-5) < batch_priority(0) == BATCH_PRIORITY < batch_priority(5)
    assert batch_priority(-MAX_PRIORITY) == 1 and batch_priority(MAX_PRIORITY) == MAX_PRIORITY


async def test_requests_of_a_line_with_many_choices_take_no_more_places_than_there_are():
    service = FakeService()
    behind = LowPriority(service, 3)
    inside = Inside(build_api(lambda: behind))
    replies = await asyncio.gather(*[inside.post("/v1/completions", completion(n=8, priority=-1)) for _ in range(2)])
    assert [len(reply.body["choices"]) for reply in replies] == [8, 8]
    assert service.most_here == 3 and {r.priority for r in service.requests} == {BATCH_PRIORITY - 1}
    assert service.num_here == 0
