"""The real `anthropic` client against /v1/messages."""

import pytest

from medusa_dist.api.routes import build_api
from medusa_dist.errors import EngineError, OverloadedError
from tests.support.chat_answers import CALLS
from tests.support.fake_service import FakeService
from tests.support.http_server import serving
from tests.support.recorded_chat import recorded_app

anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.clients

ASK = {"model": FakeService.name, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
SERVICE = FakeService()


@pytest.fixture(scope="module")
def url():
    with serving(build_api(lambda: SERVICE, "s3cret")) as url:
        yield url


@pytest.fixture
def client(url):
    SERVICE.__init__()
    with anthropic.Anthropic(base_url=url, api_key="s3cret", max_retries=0, timeout=10) as client:
        yield client


def test_create_returns_text_stop_sequence_usage_and_request_id(client):
    message = client.messages.create(**ASK, system="be short", stop_sequences=["th"], extra_body={"seed": 5})
    assert message.content[0].text == "Hello " and message.stop_sequence == "th"
    assert message.usage.output_tokens > 0 and message._request_id.startswith("req-")


def test_stream_accumulates_to_the_message_of_create(client):
    with client.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text == "Hello thé 😀!" and message.stop_reason == "end_turn"
    assert message.usage.input_tokens == client.messages.create(**ASK).usage.input_tokens > 0


def test_count_tokens_returns_the_input_tokens_of_create(client):
    count = client.messages.count_tokens(model=ASK["model"], messages=ASK["messages"]).input_tokens
    assert count == client.messages.create(**ASK).usage.input_tokens


def test_errors_are_the_clients_own_classes(client):
    with pytest.raises(anthropic.NotFoundError, match="does not exist here"):
        client.messages.create(**ASK | {"model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**ASK, extra_body={"temperature": -1.0})  # newer clients have no such argument
    SERVICE.before = OverloadedError("full")
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(**ASK)
    SERVICE.before, SERVICE.between = None, EngineError("the service stops")
    with pytest.raises(anthropic.APIStatusError, match="the service stops"):
        list(client.messages.create(**ASK, stream=True))
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(**ASK)


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_text_and_tool_use_arrive_as_typed_blocks(stream):
    answer = {"reasoning": ["h", "m"], "content": ["I ", "look"], "calls": CALLS, "finish": "tool_calls"}
    with serving(recorded_app(answer)) as url, anthropic.Anthropic(base_url=url, api_key="x") as client:
        if stream:
            with client.messages.stream(**ASK) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**ASK)
    thinking, text, first, second = message.content
    assert (thinking.thinking, text.text, message.stop_reason) == ("hm", "I look", "tool_use")
    assert (first.name, first.input, second.id, second.input) == ("find", {"q": "thé", "n": 2}, "call_b", {})
    message.model_validate(message.model_dump())
    again = [*ASK["messages"], {"role": "assistant", "content": message.to_dict()["content"]}]
    assert [block["type"] for block in again[1]["content"]] == ["thinking", "text", "tool_use", "tool_use"]
