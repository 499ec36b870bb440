import json

import pytest

from medusa_dist.api import sse
from medusa_dist.errors import EngineError, RequestError
from tests.support import anthropic_shapes
from tests.support.explained_service import Explained
from tests.support.fake_service import FakeService, chat, client_of

PATH = "/v1/messages"
TEXT = {"type": "text", "text": "b"}
BASE = {"model": FakeService.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
# A request, and the chat request that it equals.
EQUAL = [
    (BASE, chat(max_tokens=100)),
    ({**BASE, "stop_sequences": ["th"]}, chat(max_tokens=100, stop=["th"])),
    ({**BASE, "max_tokens": 3, "temperature": 0.5, "top_k": 4}, chat(max_tokens=3, temperature=0.5, top_k=4)),
    (
        {**BASE, "system": "a", "messages": [{"role": "user", "content": [TEXT]}]},
        chat(max_tokens=100, messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
    ),
    (
        {**BASE, "messages": [*BASE["messages"], {"role": "assistant", "content": "I th"}]},
        chat(
            max_tokens=100,
            messages=[*BASE["messages"], {"role": "assistant", "content": "I th"}],
            continue_final_message=True,
        ),
    ),
]


async def post(body, service=None, path=PATH):
    service = service or FakeService()
    async with client_of(service) as client:
        return await client.post(path, json=body), service


def events(text):
    """The events of a stream, whose names are their types."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.mark.parametrize(("body", "equal"), EQUAL)
async def test_a_message_is_made_of_the_tokens_of_the_equal_chat_call(body, equal):
    reply, service = await post({**body, "seed": 5})
    message = reply.json()
    anthropic_shapes.Message.model_validate(message)
    other, other_service = await post({**equal, "seed": 5}, path="/v1/chat/completions")
    mine, theirs = service.requests[0], other_service.requests[0]
    assert (mine.prompt_ids, mine.params, mine.seed) == (theirs.prompt_ids, theirs.params, theirs.seed)
    assert message["content"] == [{"type": "text", "text": other.json()["choices"][0]["message"]["content"]}]
    assert message["usage"]["output_tokens"] == other.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize(("body", "equal"), EQUAL)
async def test_a_streamed_message_is_the_one_that_is_not_streamed(body, equal):
    whole = (await post({**body, "seed": 5}))[0].json()
    reply, _ = await post({**body, "seed": 5, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream") and "[DONE]" not in reply.text
    found = events(reply.text)
    for event in found:
        anthropic_shapes.Event.validate_python(event)
    streamed = anthropic_shapes.accumulate(found)
    ids = (streamed.pop("id"), whole.pop("id"))
    assert all(id.startswith("msg_") for id in ids)
    del whole["metrics"]
    assert streamed == whole


async def test_the_stop_sequence_that_ended_the_message_is_named():
    message = (await post({**BASE, "stop_sequences": ["x", "th"]}))[0].json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "th")
    assert message["content"] == [{"type": "text", "text": "Hello "}]


async def test_counted_tokens_are_those_of_the_prompt():
    fields = {"system": "be short", "messages": [{"role": "user", "content": [TEXT, TEXT]}]}
    reply, _ = await post({"model": FakeService.name, **fields}, path=f"{PATH}/count_tokens")
    message, service = await post({**BASE, **fields})
    assert reply.json() == {"input_tokens": len(service.requests[0].prompt_ids)}
    usage = message.json()["usage"]
    assert reply.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


async def test_an_error_after_the_first_token_is_an_event_and_the_end():
    service = FakeService()
    service.between = EngineError("the service stops")
    reply, _ = await post({**BASE, "stream": True}, service)
    *_, last = events(reply.text)
    anthropic_shapes.Event.validate_python(last)
    assert last["error"] == {"type": "overloaded_error", "message": "the service stops"}
    assert "message_stop" not in reply.text


async def test_an_early_error_sets_the_status_of_a_stream():
    service = FakeService()
    service.before = EngineError("the service starts")
    reply, _ = await post({**BASE, "stream": True}, service)
    assert reply.status_code == 503 and reply.json()["type"] == "error"


async def test_pings_keep_a_silent_stream_alive(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
    service = FakeService("a")
    service.pause_s = 0.05
    reply, _ = await post({**BASE, "stream": True}, service)
    assert events(reply.text)[0] == {"type": "ping"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}] * 2}, "tools"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
async def test_what_chat_refuses_is_said_in_the_words_of_this_api(fields, words):
    reply, _ = await post({**BASE, **fields})
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400 and words in message and "reasoning_effort" not in message


async def test_what_the_engine_refuses_is_said_in_the_words_of_this_api():
    service = FakeService()
    service.before = RequestError("response_format: oneOf is not supported", "response_format")
    reply, _ = await post(BASE, service)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "output_config.format: oneOf is not supported"


async def test_a_prompt_that_does_not_fit_names_max_tokens():
    reply, _ = await post({**BASE, "max_tokens": 190})
    assert reply.status_code == 400
    assert "exceed context limit: " in reply.json()["error"]["message"]
    assert "max_completion_tokens" not in reply.text


async def test_explain_adds_the_steps_of_the_chat_request():
    text = "Hello thé there"
    asked = chat(max_tokens=100, explain=True)
    expected = (await post(asked, Explained(text), "/v1/chat/completions"))[0].json()["choices"][0]["steps"]
    whole = (await post({**BASE, "explain": True}, Explained(text)))[0].json()
    assert whole["steps"] == expected and len(expected) > 3 and whole["content"][0]["text"] == text
    found = events((await post({**BASE, "explain": True, "stream": True}, Explained(text)))[0].text)
    assert [step for event in found for step in event.get("steps", ())] == expected
    assert {event["type"] for event in found if "steps" in event} <= {"content_block_delta", "message_delta"}
    assert sum("steps" in event for event in found) > 3, "as they come, not all at the end"


@pytest.mark.parametrize("stream", [False, True])
async def test_without_explain_there_are_no_steps(stream):
    reply, service = await post({**BASE, "stream": stream}, Explained("Hello there"))
    assert reply.status_code == 200 and '"steps"' not in reply.text and not service.requests[0].explain
