"""A call of many sequences is admitted as a whole, over time, whatever the service can hold at once."""

import asyncio

import pytest

from medusa_dist.api import call as module
from tests.support.fake_service import FakeService, client_of, completion


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PLACE_S", 0.001)


async def texts(service: FakeService, **fields) -> list[str]:
    async with client_of(service) as client:
        reply = await client.post("/v1/completions", json=completion(seed=5, **fields))
    assert reply.status_code == 200, reply.text
    return [choice["text"] for choice in reply.json()["choices"]]


async def test_openais_largest_n_is_answered_with_few_sequences_at_the_service_at_a_time():
    expected = await texts(FakeService(), n=128)
    service = FakeService()
    service.requests_per_call = 4
    assert await texts(service, n=128) == expected and len(set(expected)) > 80  # all that fit
    assert service.most_here == 4 and len(service.requests) == 128


async def test_many_prompts_times_n_are_answered_by_a_service_with_three_places():
    prompts = ["Hi"] * 8
    expected = await texts(FakeService(), n=10, prompt=prompts)
    service = FakeService()
    service.requests_per_call = service.num_places = 3
    assert await texts(service, n=10, prompt=prompts) == expected and len(expected) == 80
    assert service.most_here == 3


async def test_two_large_calls_share_the_places_and_both_finish():
    service = FakeService()
    service.requests_per_call, service.num_places = 3, 4
    both = await asyncio.gather(texts(service, n=30), texts(service, n=30))
    assert both[0] == both[1] == await texts(FakeService(), n=30)
    assert service.most_here == 4 and service.num_here == 0


async def test_a_small_call_gets_in_beside_a_large_one():
    service = FakeService()
    service.requests_per_call, service.num_places, service.pause_s = 3, 4, 0.002
    large = asyncio.create_task(texts(service, n=60))
    while service.num_here < 3:
        await asyncio.sleep(0)
    assert len(await texts(service)) == 1
    assert not large.done() and len(await large) == 60


async def test_a_full_service_refuses_a_large_call_with_its_first_request():
    service = FakeService()
    service.num_places = 0
    async with client_of(service) as client:
        reply = await client.post("/v1/completions", json=completion(n=50))
    assert reply.status_code == 429 and reply.headers["retry-after"] and service.finished == []


async def test_more_choices_than_a_call_may_have_are_a_400_that_names_the_limit():
    async with client_of(FakeService()) as client:
        for fields, param in (({"n": 128, "prompt": ["a"] * 9}, "n"), ({"prompt": ["a"] * 1025}, "prompt")):
            reply = await client.post("/v1/completions", json=completion(**fields))
            assert reply.status_code == 400 and reply.json()["error"]["param"] == param
            assert "exceed 1024 choices in one call" in reply.json()["error"]["message"]


async def test_a_call_that_is_closed_takes_its_waiting_requests_along():
    service = FakeService()
    service.requests_per_call, service.hang_after = 2, 1
    async with client_of(service) as client:
        post = asyncio.create_task(client.post("/v1/completions", json=completion(n=10)))
        while service.num_here < 2:
            await asyncio.sleep(0)
        post.cancel()
        await asyncio.wait([post])
    assert service.num_here == 0 and len(service.requests) == 2
