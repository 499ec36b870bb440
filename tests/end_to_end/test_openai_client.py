"""The real `openai` client against a real HTTP server: what users have in their hands."""

import json
import socket
import threading
import time

import openai
import pydantic
import pytest
import uvicorn

from medusa_dist.api.routes import build_api
from medusa_dist.errors import EngineError, OverloadedError
from tests.support.fake_service import FakeService

SERVICE = FakeService()
SAY = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def url():
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_api(lambda: SERVICE, "s3cret"), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def service():
    SERVICE.__init__()
    return SERVICE


@pytest.fixture
def client(url, service):
    with openai.OpenAI(base_url=url, api_key="s3cret", max_retries=0, timeout=10) as client:
        yield client


def test_openai_client_gets_a_chat_reply_with_logprobs_and_usage(client):
    reply = client.chat.completions.create(
        model="org/tiny", messages=SAY, logprobs=True, top_logprobs=1, max_completion_tokens=50, seed=3
    )
    assert reply.choices[0].message.content == "Hello thé 😀!" and reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs.content[0].top_logprobs[0].bytes == [98]
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert (reply.model_extra["seed"], reply.system_fingerprint) == (3, "fp-noise1")


def test_an_answer_appended_unchanged_is_taken(client, service):
    raw = client.chat.completions.with_raw_response.create(model="org/tiny", messages=SAY)
    message = raw.parse().choices[0].message
    for again in (message, message.model_dump(), json.loads(raw.text)["choices"][0]["message"]):
        client.chat.completions.create(model="org/tiny", messages=[*SAY, again, *SAY])
        text = service.tokenizer.decode(service.requests[-1].prompt_ids)
        assert text == "<s>user\nHi<eos><s>assistant\nHello thé 😀!<eos><s>user\nHi<eos><s>assistant\n"


def test_openai_client_streams_two_choices_and_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="org/tiny", messages=SAY, stream=True, n=2, stream_options={"include_usage": True}
        )
    )
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Hello thé 😀!", "Hello thé 😀!."]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 20


def test_openai_client_gets_completions_and_models(client):
    reply = client.completions.create(model="org/tiny", prompt=["a", "b"], echo=True, max_tokens=50)
    assert [c.text for c in reply.choices] == ["aHello thé 😀!", "bHello thé 😀!."]
    stream = client.completions.create(model="org/tiny", prompt="a", logprobs=1, stream=True, max_tokens=3)
    assert "".join(c.choices[0].text for c in stream) == "Hel"
    assert [m.id for m in client.models.list()] == ["org/tiny"]
    assert client.models.retrieve("org/tiny").owned_by == "medusa_dist"


def test_vllm_fields_go_through_extra_body(client, service):
    client.chat.completions.create(
        model="org/tiny", messages=SAY, extra_body={"top_k": 3, "min_p": 0.1, "speculation": "off"}
    )
    params = service.requests[0].params
    assert (params.top_k, params.min_p, params.speculation) == (3, 0.1, False)


def test_pydantic_response_format_is_parsed_by_the_client(client, service):
    class Person(pydantic.BaseModel):
        name: str
        age: int

    service.text = '{"name": "Ada", "age": 36}'
    reply = client.chat.completions.parse(model="org/tiny", messages=SAY, response_format=Person)
    assert reply.choices[0].message.parsed == Person(name="Ada", age=36)
    schema = json.loads(service.requests[0].params.grammar.text)
    assert set(schema["properties"]) == {"name", "age"} and schema["additionalProperties"] is False


def test_errors_become_the_clients_exception_classes(client, service, url):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="org/tiny", messages=SAY, verbosity="low")
    assert caught.value.param == "verbosity" and caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError, match="org/tiny"):
        client.chat.completions.create(model="other", messages=SAY)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    service.before = RuntimeError("boom")
    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=2).chat.completions.create(model="org/tiny", messages=SAY)
    assert len(service.requests) == 1  # x-should-retry: false was heard


def test_client_retries_an_overloaded_service(client, service):
    service.before = OverloadedError("full", 0.01)
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=2).chat.completions.create(model="org/tiny", messages=SAY)
    assert len(service.requests) == 3
    assert caught.value.response.headers["retry-after"] == "1"


def test_error_in_mid_stream_is_raised_by_the_client(client, service):
    service.between = EngineError("rank lost")
    stream = client.chat.completions.create(model="org/tiny", messages=SAY, stream=True)
    with pytest.raises(openai.APIError, match="rank lost"):
        list(stream)


@pytest.mark.parametrize("stream", [True, False])
def test_closed_socket_aborts_the_request(client, service, stream):
    service.hang_after = 1
    if stream:
        reply = client.chat.completions.create(model="org/tiny", messages=SAY, stream=True)
        next(iter(reply))
        reply.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(model="org/tiny", messages=SAY)
    deadline = time.monotonic() + 5
    while not service.aborted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.aborted == [service.requests[0].request_id]
