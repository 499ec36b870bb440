import pytest

from medusa_dist.api.convert import error_body
from medusa_dist.api.messages.errors import messages_error
from medusa_dist.errors import EngineError, OverloadedError, RequestError
from medusa_dist.request import check_prompt
from tests.support import anthropic_shapes
from tests.support.fake_service import FakeService, client_of

BASE = {"model": FakeService.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_types_are_anthropics_by_status(status, kind):
    assert messages_error(status, error_body("no", "x"), "req-1") == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req-1",
    }


def test_the_message_names_the_field():
    def message(*args):
        return messages_error(400, error_body(*args), "r")["error"]["message"]

    assert message("must be lower", "x", "temperature") == "temperature: must be lower"
    assert message("temperature must be lower", "x", "temperature") == "temperature must be lower"


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "words"),
    [
        (120, 10, "prompt is too long: 120 tokens > 100 maximum; "),
        (90, 20, "input length and `max_tokens` exceed context limit: 90 + 20 > 100; "),
    ],
)
def test_too_long_a_prompt_is_said_in_anthropics_words(num_prompt, max_tokens, words):
    with pytest.raises(RequestError) as caught:
        check_prompt([1] * num_prompt, 100, 10, max_tokens)
    error = caught.value
    found = messages_error(400, error_body(error.message, error.kind, error.param), "r")["error"]["message"]
    assert words + error.message in found


async def post(body, path="/v1/messages", service=None, **kwargs):
    async with client_of(service or FakeService(), **kwargs) as client:
        return await client.post(path, json=body, headers={"x-request-id": "req-1"})


@pytest.mark.parametrize(
    ("reply", "status", "kind", "words"),
    [
        (post({**BASE, "max_tokens": "7"}), 400, "invalid_request_error", "max_tokens"),
        (post({**BASE, "model": "other"}), 404, "not_found_error", "'other' does not exist here"),
        (post({**BASE, "model": "other"}, "/v1/messages/count_tokens"), 400, "invalid_request_error", "max_tokens"),
        (post(BASE, "/v1/messages/nothing"), 404, "not_found_error", ""),
        (post(BASE, api_key="k"), 401, "authentication_error", "x-api-key"),
    ],
    ids=["value", "model", "count", "route", "key"],
)
async def test_errors_of_all_layers_have_anthropics_shape(reply, status, kind, words):
    reply = await reply
    body = reply.json()
    anthropic_shapes.Error.model_validate(body)
    assert (reply.status_code, body["error"]["type"], body["request_id"]) == (status, kind, "req-1")
    assert words in body["error"]["message"]
    assert reply.headers["request-id"] == reply.headers["x-request-id"] == "req-1"
    assert int(reply.headers["content-length"]) == len(reply.content)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OverloadedError("full", 2.0), "rate_limit_error"), (EngineError("no", 2.0), "overloaded_error")],
)
async def test_errors_of_the_service_keep_their_hints(error, kind):
    service = FakeService()
    service.before = error
    reply = await post(BASE, service=service)
    assert reply.json()["error"]["type"] == kind and reply.headers["retry-after"] == "2"


async def test_a_bug_is_an_api_error_that_shows_nothing_but_the_request_id():
    service = FakeService()
    service.before = RuntimeError("secret")
    reply = await post(BASE, service=service)
    error = {"type": "api_error", "message": "internal error; request id req-1"}
    assert reply.status_code == 500 and reply.json() == {"type": "error", "error": error, "request_id": "req-1"}
    assert reply.headers["x-should-retry"] == "false" and reply.headers["request-id"] == "req-1"


async def test_other_routes_keep_their_own_errors():
    reply = await post({}, "/v1/chat/completions")
    assert set(reply.json()) == {"error"} and "request-id" not in reply.headers
    assert (await post({}, "/v1/messages_of_others")).json()["error"]["param"] is None
