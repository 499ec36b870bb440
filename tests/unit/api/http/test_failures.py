import pytest

from medusa_dist.api.http.failures import Failures
from tests.support.fake_service import FakeService, chat, client_of


async def test_unexpected_error_is_500_with_request_id_and_no_detail():
    service = FakeService()
    service.before = ZeroDivisionError("secret")
    async with client_of(service) as client:
        reply = await client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "mine"})
    assert reply.status_code == 500 and reply.headers.get_list("x-request-id") == ["mine"]
    assert "mine" in reply.json()["error"]["message"] and "secret" not in reply.text


async def test_error_after_response_start_is_raised_not_answered():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def send(message):
        sent.append(message["type"])

    with pytest.raises(ZeroDivisionError):
        await Failures(app)({"type": "http"}, None, send)
    assert sent == ["http.response.start"]
