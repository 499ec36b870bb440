import pytest

from medusa_dist.api.http.failures import Failures
from tests.support.fake_service import FakeService, chat, client_of


async def test_a_bug_is_a_500_with_its_request_id_and_no_more():
    service = FakeService()
    service.before = ZeroDivisionError("secret")
    async with client_of(service) as client:
        reply = await client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "mine"})
    assert reply.status_code == 500 and reply.headers.get_list("x-request-id") == ["mine"]
    assert "mine" in reply.json()["error"]["message"] and "secret" not in reply.text


async def test_an_error_after_the_start_of_a_response_is_not_a_second_response():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def send(message):
        sent.append(message["type"])

    with pytest.raises(ZeroDivisionError):
        await Failures(app)({"type": "http"}, None, send)
    assert sent == ["http.response.start"]
