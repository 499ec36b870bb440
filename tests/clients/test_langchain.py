"""langchain-openai: ChatOpenAI as chains and agents use it."""

from typing import Literal

import pytest

from tests.clients.conftest import hermes_call

langchain_openai = pytest.importorskip("langchain_openai")
messages = pytest.importorskip("langchain_core.messages")
tools = pytest.importorskip("langchain_core.tools")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.clients


class Weather(pydantic.BaseModel):
    """The weather."""

    unit: Literal["C", "F"]
    sunny: bool


@tools.tool
def look_up(unit: Literal["C", "F"]) -> str:
    """Look it up."""
    return f"20 {unit}"


def chat(served, **fields):
    where = {"base_url": served.base_url, "api_key": served.api_key, "model": served.model, "max_retries": 0}
    return langchain_openai.ChatOpenAI(**where | {"max_tokens": 200} | fields)


def test_invoke_returns_text_and_usage(tiny):
    reply = chat(tiny, max_tokens=6, temperature=0.5, seed=3, logprobs=True, top_logprobs=2, stop=["\n\n"]).invoke("Hi")
    assert reply.content and reply.usage_metadata["output_tokens"] <= 6
    assert len(reply.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_stream_with_usage(scripted):
    scripted.script("Hello there")
    parts = list(chat(scripted, stream_usage=True).stream("Hi"))
    assert "".join(part.content for part in parts) == "Hello there" and len(parts) > 3
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) > 2


def test_batch_answers_each(tiny):
    assert len(chat(tiny, max_tokens=4).batch(["a", "b", "c"])) == 3


async def test_ainvoke_and_astream(scripted):
    scripted.script("Hello there")
    assert (await chat(scripted).ainvoke("Hi")).content == "Hello there"
    assert "".join([part.content async for part in chat(scripted).astream("Hi")]) == "Hello there"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
def test_structured_output(tiny, method, strict):
    assert isinstance(chat(tiny).with_structured_output(Weather, method=method, strict=strict).invoke("Hi"), Weather)


def test_structured_output_by_json_mode(scripted):
    scripted.script('{"unit": "C", "sunny": true}')
    model = chat(scripted).with_structured_output(Weather, method="json_mode", include_raw=True)
    assert model.invoke("Hi as JSON")["parsed"] == Weather(unit="C", sunny=True)


@pytest.mark.parametrize("choice", ["any", "required", "look_up", True])
def test_bind_tools_with_a_forced_choice(tiny, choice):
    model = chat(tiny).bind_tools([look_up], tool_choice=choice, parallel_tool_calls=False, strict=True)
    for reply in (model.invoke("Hi"), sum_of(model.stream("Hi"))):
        (call,) = reply.tool_calls
        assert call["name"] == "look_up" and call["args"]["unit"] in ("C", "F")


def sum_of(parts):
    first, *rest = parts
    for part in rest:
        first += part
    return first


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_its_result_and_the_answer(scripted, stream):
    scripted.script("I look. " + hermes_call("look_up", unit="C"), "It is 20 C")
    model = chat(scripted).bind_tools([look_up])
    said = [messages.SystemMessage("Be short"), messages.HumanMessage("Hi")]
    reply = sum_of(model.stream(said)) if stream else model.invoke(said)
    assert reply.content == "I look. "
    said += [reply, *(look_up.invoke(call) for call in reply.tool_calls)]
    assert model.invoke(said).content == "It is 20 C" and "<s>tool\n20 C<eos>" in scripted.seen()[1]


def test_the_responses_api(scripted):
    scripted.script("I look. " + hermes_call("look_up", unit="C"), "It is 20 C")
    model = chat(scripted, use_responses_api=True).bind_tools([look_up])
    said = [messages.HumanMessage("Hi")]
    reply = sum_of(model.stream(said))
    said += [reply, *(look_up.invoke(call) for call in reply.tool_calls)]
    assert model.invoke(said).text == "It is 20 C" and "<s>tool\n20 C<eos>" in scripted.seen()[1]


def test_structured_output_over_responses(tiny):
    model = chat(tiny, use_responses_api=True)
    assert isinstance(model.with_structured_output(Weather, method="json_schema").invoke("Hi"), Weather)


def test_completions_llm(tiny):
    where = {"base_url": tiny.base_url, "api_key": tiny.api_key, "model": "tiny", "max_tokens": 4}
    model = langchain_openai.OpenAI(**where)
    assert model.invoke("a") is not None and len(model.batch(["a", "b"])) == 2 and list(model.stream("a"))


def test_errors_are_openais_classes(tiny):
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(tiny, temperature=-1.0).invoke("Hi")
    with pytest.raises(openai.NotFoundError, match="other"):
        chat(tiny, model="other").invoke("Hi")
    where = {"base_url": tiny.base_url, "api_key": tiny.api_key, "check_embedding_ctx_length": False}
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        langchain_openai.OpenAIEmbeddings(**where).embed_query("a")
