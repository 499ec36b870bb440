"""The `openai` client, from its first 1.x on, against a tiny model and a scripted one."""

import json

import pytest

from tests.clients.conftest import hermes_call

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.clients

SAY = [{"role": "user", "content": "Hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["unit", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Ask", "parameters": PARAMETERS}}
OTHER = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}
VERSION = tuple(int(part) for part in openai.__version__.split(".")[:2])
# What older clients have no argument for goes through extra_body, as their users do it.
TOOLS = {"extra_body": {"tools": [TOOL, OTHER], "tool_choice": "required", "parallel_tool_calls": False}}


def since(*version):
    return pytest.mark.skipif(version > VERSION, reason=f"openai {openai.__version__} has no such method")


def client_of(served, **options):
    given = {"base_url": served.base_url, "api_key": served.api_key, "max_retries": 0, "timeout": 60}
    return openai.OpenAI(**given | options)


@pytest.fixture
def client(tiny):
    with client_of(tiny) as client:
        yield client


def test_chat_returns_text_usage_and_logprobs(client):
    reply = client.chat.completions.create(
        model="tiny", messages=SAY, max_tokens=8, extra_body={"logprobs": True, "top_logprobs": 2, "seed": 3}
    )
    (choice,) = reply.choices
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert reply.usage.completion_tokens <= 8 and reply.usage.prompt_tokens > 2
    logprobs = reply.model_dump()["choices"][0]["logprobs"]["content"]
    assert len(logprobs) == reply.usage.completion_tokens and len(logprobs[0]["top_logprobs"]) == 2


def test_stream_is_the_text_of_the_whole_answer(client):
    fields = {"model": "tiny", "messages": SAY, "max_tokens": 8, "extra_body": {"seed": 3}}
    whole = client.chat.completions.create(**fields).choices[0].message.content
    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client, stream):
    reply = client.completions.create(model="tiny", prompt="a", max_tokens=4, logprobs=1, stream=stream)
    texts = [part.choices[0].text for part in reply] if stream else [reply.choices[0].text]
    assert "".join(texts)


def test_json_schema_is_enforced(client):
    form = {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": PARAMETERS}}
    reply = client.chat.completions.create(
        model="tiny", messages=SAY, max_tokens=100, extra_body={"response_format": form}
    )
    values = json.loads(reply.choices[0].message.content)
    assert values["unit"] in "CF" and 1 <= values["days"] <= 9


@since(1, 92)
def test_parse_returns_the_pydantic_model(client):
    class Weather(pydantic.BaseModel):
        sunny: bool

    reply = client.chat.completions.parse(model="tiny", messages=SAY, max_tokens=100, response_format=Weather)
    assert isinstance(reply.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_forced_call_parses_and_fits_its_schema(client, choice):
    reply = client.chat.completions.create(
        model="tiny",
        messages=SAY,
        max_tokens=200,
        extra_body={"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False},
    )
    message = reply.model_dump()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"])["unit"] in "CF"
    assert reply.choices[0].finish_reason == "tool_calls"


def test_streamed_call_is_the_whole_ones(client):
    fields = {"model": "tiny", "messages": SAY, "max_tokens": 200}
    fields["extra_body"] = TOOLS["extra_body"] | {"seed": 1}
    whole = client.chat.completions.create(**fields).model_dump()["choices"][0]["message"]["tool_calls"]
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**fields, stream=True):
        for call in chunk.model_dump()["choices"][0]["delta"].get("tool_calls") or ():
            assert call["index"] == 0
            name += call["function"].get("name") or ""
            arguments += call["function"].get("arguments") or ""
    assert [(name, arguments)] == [(call["function"]["name"], call["function"]["arguments"]) for call in whole]


def test_result_of_a_call_goes_back_to_the_model(scripted):
    scripted.script("I ask. " + hermes_call("weather", unit="C", days=2), "It is 20 C.")
    client = client_of(scripted)
    ask = {"model": "tiny", "extra_body": {"tools": [TOOL]}}
    message = client.chat.completions.create(messages=SAY, **ask).choices[0].message
    (call,) = message.model_dump()["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "20"}
    reply = client.chat.completions.create(messages=[*SAY, message.model_dump(), result], **ask)
    assert reply.choices[0].message.content == "It is 20 C."
    assert '"days": 2' in scripted.seen()[1] and "<s>tool\n20<eos>" in scripted.seen()[1]


@since(1, 92)
def test_responses_create_and_stream(scripted):
    scripted.script("Hello there")
    client = client_of(scripted)
    response = client.responses.create(model="tiny", input="Hi")
    with client.responses.stream(model="tiny", input="Hi") as events:
        streamed = events.get_final_response()
    assert response.output_text == streamed.output_text == "Hello there"
    assert response.usage.output_tokens == streamed.usage.output_tokens > 2


@since(1, 92)
def test_responses_forced_call_and_parse(client):
    class Weather(pydantic.BaseModel):
        sunny: bool

    flat = {"type": "function", "strict": True, **TOOL["function"]}
    choice = {"type": "function", "name": "weather"}
    response = client.responses.create(model="tiny", input="Hi", tools=[flat], tool_choice=choice)
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "weather") and json.loads(call.arguments)["unit"] in "CF"
    parsed = client.responses.parse(model="tiny", input="Hi", text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)


def test_errors_are_the_clients_own_classes(client, tiny):
    def chat(client, **fields):
        return client.chat.completions.create(**{"model": "tiny", "messages": SAY, "max_tokens": 1} | fields)

    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature=-1.0)
    assert "temperature" in str(caught.value) and (VERSION < (1, 92) or caught.value.param == "temperature")
    with pytest.raises(openai.NotFoundError):
        chat(client, model="other")
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, max_tokens=100_000)
    assert "maximum context length is 8192 tokens" in str(caught.value)
    with pytest.raises(openai.AuthenticationError):
        client_of(tiny, api_key="wrong").models.list()


@pytest.mark.parametrize("route", ["embeddings", "moderations"])
def test_routes_that_do_not_exist_are_not_found(client, route):
    with pytest.raises(openai.NotFoundError, match=f"/v1/{route}"):
        getattr(client, route).create(model="tiny", input="a")


async def test_async_client_streams(tiny):
    client = openai.AsyncOpenAI(base_url=tiny.base_url, api_key=tiny.api_key)
    stream = await client.chat.completions.create(model="tiny", messages=SAY, max_tokens=4, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    await client.close()


def test_models_list(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
