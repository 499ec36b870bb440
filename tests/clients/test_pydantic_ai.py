"""pydantic-ai: agents over chat completions and over Responses."""

from typing import Literal

import pytest

from tests.clients.conftest import hermes_call

ai = pytest.importorskip("pydantic_ai")
openai_models = pytest.importorskip("pydantic_ai.models.openai")
providers = pytest.importorskip("pydantic_ai.providers.openai")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.clients


class Weather(pydantic.BaseModel):
    """The weather."""

    model_config = pydantic.ConfigDict(extra="forbid")
    unit: Literal["C", "F"]
    sunny: bool


@pytest.fixture(params=["OpenAIChatModel", "OpenAIResponsesModel"])
def kind(request):
    return getattr(openai_models, request.param)


def agent_of(kind, served, **fields):
    provider = providers.OpenAIProvider(base_url=served.base_url, api_key=served.api_key)
    return ai.Agent(kind(served.model, provider=provider), model_settings={"max_tokens": 200}, retries=0, **fields)


def test_run_returns_text_and_usage(kind, scripted):
    scripted.script("Hello there")
    result = agent_of(kind, scripted, instructions="Be short").run_sync("Hi")
    assert result.output == "Hello there" and result.usage.output_tokens > 2
    again = agent_of(kind, scripted).run_sync("More", message_history=result.all_messages())
    assert again.output == "Hello there" and "Hello there" in scripted.seen()[1]


def test_output_by_tool_call(kind, tiny):
    assert isinstance(agent_of(kind, tiny, output_type=Weather).run_sync("Hi").output, Weather)


def test_native_output(kind, tiny):
    assert isinstance(agent_of(kind, tiny, output_type=ai.NativeOutput(Weather)).run_sync("Hi").output, Weather)


def test_prompted_output(kind, scripted):
    scripted.script('{"unit": "C", "sunny": true}')
    output = agent_of(kind, scripted, output_type=ai.PromptedOutput(Weather)).run_sync("Hi").output
    assert output == Weather(unit="C", sunny=True)


def with_tool(kind, scripted):
    scripted.script("I look. " + hermes_call("look_up", unit="C"), "It is 20 C")
    agent = agent_of(kind, scripted)

    @agent.tool_plain
    def look_up(unit: Literal["C", "F"]) -> str:
        """Look it up."""
        return f"20 {unit}"

    return agent


def test_agent_calls_a_tool_and_answers(kind, scripted):
    assert with_tool(kind, scripted).run_sync("Hi").output == "It is 20 C"
    assert "<s>tool\n20 C<eos>" in scripted.seen()[1]


async def test_streamed_agent_calls_a_tool_and_answers(kind, scripted):
    agent = with_tool(kind, scripted)
    async with agent.iter("Hi") as run:
        async for _ in run:
            pass
    assert run.result.output == "It is 20 C"
    scripted.script("Hello there")
    async with agent_of(kind, scripted).run_stream("Hi") as result:
        texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(texts) == "Hello there" and len(texts) > 2


async def test_streamed_output_by_tool_call(kind, tiny):
    async with agent_of(kind, tiny, output_type=Weather).run_stream("Hi") as result:
        assert isinstance(await result.get_output(), Weather)


def test_error_is_a_model_http_error(kind, tiny):
    other = type(tiny)(tiny.base_url, model="other")
    with pytest.raises(ai.ModelHTTPError) as caught:
        agent_of(kind, other).run_sync("Hi")
    assert caught.value.status_code == 404 and caught.value.body["code"] == "model_not_found"
