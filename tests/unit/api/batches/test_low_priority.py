"""Lines of batches come after all other requests, and leave them room."""

import asyncio

import pytest

from medusa_dist.api.batches.low_priority import BATCH_PRIORITY, LowPriority, batch_priority, places
from medusa_dist.api.in_process_client import Inside
from medusa_dist.api.routes import build_api
from medusa_dist.request import MAX_PRIORITY
from tests.support.fake_service import FakeService, completion


@pytest.mark.parametrize(
    ("running", "queued", "expected"),
    [(16, 128, 12), (16, 16, 12), (16, 0, 8), (4, 4, 3), (2, 9, 1), (1, 9, 1), (1, 0, 1)],
)
def test_a_part_of_the_batch_and_of_the_queue_is_always_left_to_others(running, queued, expected):
    assert places(running, queued) == expected


def test_own_priority_orders_lines_among_each_other_and_never_before_others():
    assert batch_priority(-5) < batch_priority(0) == BATCH_PRIORITY < batch_priority(5)
    assert batch_priority(-MAX_PRIORITY) == 1 and batch_priority(MAX_PRIORITY) == MAX_PRIORITY


async def test_requests_of_a_line_with_many_choices_take_no_more_places_than_there_are():
    service = FakeService()
    behind = LowPriority(service, 3, 1000)
    inside = Inside(build_api(lambda: behind))
    replies = await asyncio.gather(*[inside.post("/v1/completions", completion(n=8, priority=-1)) for _ in range(2)])
    assert [len(reply.body["choices"]) for reply in replies] == [8, 8]
    assert service.most_here == 3 and {r.priority for r in service.requests} == {BATCH_PRIORITY - 1}
    assert service.num_here == 0


async def test_no_line_begins_while_other_requests_fill_the_batch():
    service = FakeService()
    service.num_requests = 4
    behind = LowPriority(service, 3, 4)
    inside = Inside(build_api(lambda: behind))
    line = asyncio.create_task(inside.post("/v1/completions", completion()))
    await asyncio.sleep(0.2)
    assert service.requests == []
    service.num_requests = 3
    assert (await line).status == 200
