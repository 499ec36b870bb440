"""The real `openai-agents` library against /v1/responses and /v1/chat/completions."""

import pytest

from medusa_dist.api.routes import build_api
from tests.clients.conftest import hermes_call
from tests.support.chat_answers import CALLS
from tests.support.fake_service import FakeService
from tests.support.http_server import serving
from tests.support.recorded_chat import recorded_app

agents = pytest.importorskip("agents")
openai = pytest.importorskip("openai")
pytestmark = pytest.mark.clients


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def agent_at(request):
    """A function: base URL -> an agent that calls it by the one API or the other."""
    agents.set_tracing_disabled(True)

    def make(url, name=FakeService.name, key="x", **fields):
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        model = getattr(agents, request.param)(name, client)
        return agents.Agent(name="a", instructions="be short", model=model, **fields)

    return make


async def test_an_agent_answers_and_takes_its_own_items_back(agent_at):
    service = FakeService()
    with serving(build_api(lambda: service)) as url:
        result = await agents.Runner.run(agent_at(url), "Hi")
        again = await agents.Runner.run(agent_at(url), [*result.to_input_list(), {"role": "user", "content": "More"}])
    assert result.final_output == again.final_output == "Hello thé 😀!"


async def test_a_streamed_agent_gets_the_text_in_deltas(agent_at):
    with serving(build_api(FakeService)) as url:
        result = agents.Runner.run_streamed(agent_at(url), "Hi")
        texts = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
    assert "".join(texts) == result.final_output == "Hello thé 😀!"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_calls_a_tool_and_answers(agent_at, scripted, stream):
    @agents.function_tool
    def look_up(unit: str) -> str:
        """Look the temperature up."""
        return f"20 {unit}"

    scripted.script("I look. " + hermes_call("look_up", unit="C"), "It is 20 C")
    url = scripted.base_url.removesuffix("/v1")
    agent = agent_at(url, scripted.model, scripted.api_key, tools=[look_up])
    if stream:
        result = agents.Runner.run_streamed(agent, "How warm?")
        async for _ in result.stream_events():
            pass
    else:
        result = await agents.Runner.run(agent, "How warm?")
    assert result.final_output == "It is 20 C" and "<s>tool\n20 C<eos>" in scripted.seen()[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_message_and_calls_arrive_as_typed_items(stream):
    answer = {"reasoning": ["hm"], "content": ["I look"], "calls": CALLS, "finish": "tool_calls"}
    with serving(recorded_app(answer)) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
        if stream:
            async with client.responses.stream(model="org/tiny", input="Hi") as events:
                response = await events.get_final_response()
        else:
            response = await client.responses.create(model="org/tiny", input="Hi")
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [(call.call_id, call.name, call.arguments) for call in response.output[2:]] == CALLS
