"""litellm, by its two ways to name an OpenAI-compatible server."""

import json

import pytest

from tests.clients.conftest import hermes_call

litellm = pytest.importorskip("litellm")
pytestmark = pytest.mark.clients

SAY = [{"role": "user", "content": "Hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


@pytest.fixture(params=["openai", "hosted_vllm"])
def provider(request):
    return request.param


def ask(provider, served, **fields):
    where = {"api_base": served.base_url, "api_key": served.api_key}
    fields = {"model": f"{provider}/{served.model}", "messages": SAY, "max_retries": 0, **where} | fields
    return litellm.completion(**fields)


def test_chat_with_sampling_fields_logprobs_and_usage(provider, tiny):
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["\n\n"], "n": 2, "presence_penalty": 0.1}
    reply = ask(provider, tiny, max_tokens=6, logprobs=True, top_logprobs=2, **fields)
    assert len(reply.choices) == 2 and reply.usage.completion_tokens <= 12
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2


def test_vllm_fields(provider, tiny):
    assert ask(provider, tiny, max_tokens=2, extra_body={"top_k": 3, "min_p": 0.1}).choices
    if provider == "hosted_vllm":
        assert ask(provider, tiny, max_tokens=2, top_k=3, min_p=0.1, repetition_penalty=1.1).choices


def test_stream_with_usage(provider, scripted):
    scripted.script("Hello there")
    chunks = list(ask(provider, scripted, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there"
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 2


def test_json_schema_and_json_object(provider, tiny):
    form = {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": PARAMETERS}}
    reply = ask(provider, tiny, response_format=form, max_tokens=60)
    assert json.loads(reply.choices[0].message.content)["unit"] in "CF"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_forced_call(provider, tiny, choice, stream):
    reply = ask(
        provider, tiny, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=100, stream=stream
    )
    reply = litellm.stream_chunk_builder(list(reply)) if stream else reply
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["unit"] in "CF"
    assert reply.choices[0].finish_reason == "tool_calls"


def test_its_own_message_and_a_result_go_back(provider, scripted):
    scripted.script(hermes_call("weather", unit="C"), "20 C")
    message = ask(provider, scripted, tools=[TOOL], tool_choice="auto").choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "name": "weather", "content": "20"}
    reply = ask(provider, scripted, tools=[TOOL], messages=[*SAY, message, result])
    assert reply.choices[0].message.content == "20 C" and "<s>tool\n20<eos>" in scripted.seen()[1]


def test_text_completion(provider, tiny):
    where = {"api_base": tiny.base_url, "api_key": tiny.api_key}
    name = "text-completion-openai" if provider == "openai" else provider
    reply = litellm.text_completion(model=f"{name}/tiny", prompt="a", max_tokens=3, **where)
    assert reply.choices[0].text is not None and reply.usage.completion_tokens == 3


def test_responses(provider, scripted):
    scripted.script("Hello there")
    where = {"api_base": scripted.base_url, "api_key": scripted.api_key}
    reply = litellm.responses(model=f"{provider}/tiny", input="Hi", **where)
    assert reply.output[0].content[0].text == "Hello there"
    events = list(litellm.responses(model=f"{provider}/tiny", input="Hi", stream=True, **where))
    assert events[-1].type == "response.completed"


async def test_async_chat(provider, tiny):
    where = {"api_base": tiny.base_url, "api_key": tiny.api_key}
    reply = await litellm.acompletion(model=f"{provider}/tiny", messages=SAY, max_tokens=3, **where)
    assert reply.choices[0].message.content


def test_errors_are_litellms_own_classes(provider, tiny):
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        ask(provider, tiny, temperature=-1.0)
    with pytest.raises(litellm.AuthenticationError):
        ask(provider, tiny, api_key="wrong")
    with pytest.raises(litellm.NotFoundError):
        ask(provider, tiny, model=f"{provider}/other")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(provider, tiny, messages=[{"role": "user", "content": "ab" * 9000}])


def test_embeddings_are_not_found(provider, tiny):
    with pytest.raises(litellm.NotFoundError, match="/v1/embeddings"):
        litellm.embedding(f"{provider}/tiny", ["a"], api_base=tiny.base_url, api_key=tiny.api_key)
