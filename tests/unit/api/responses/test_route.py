import json

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from medusa_dist.errors import EngineError, RequestError
from tests.support.explained_service import Explained
from tests.support.fake_service import FakeService, chat, client_of

PATH, CHAT = "/v1/responses", "/v1/chat/completions"
BASE = {"model": FakeService.name, "input": "Hi"}
EVENT = TypeAdapter(ResponseStreamEvent)
# A request, and the chat request that it equals.
EQUAL = [
    (BASE, chat()),
    ({**BASE, "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}, chat()),
    ({**BASE, "max_output_tokens": 3, "temperature": 0.5, "stop": "x"}, chat(max_tokens=3, temperature=0.5, stop="x")),
    (
        {**BASE, "instructions": "a", "input": "b"},
        chat(messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
    ),
    (
        {**BASE, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        chat(logprobs=True, top_logprobs=2),
    ),
    (
        {**BASE, "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "integer"}}}},
        chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}),
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
        EVENT.validate_json(data.removeprefix("data: "))
    return found


@pytest.mark.parametrize(("body", "equal"), EQUAL)
async def test_a_response_is_made_of_the_tokens_of_the_equal_chat_call(body, equal):
    reply, service = await post({**body, "seed": 5})
    response = reply.json()
    Response.model_validate_json(reply.text, strict=True)
    other, other_service = await post({**equal, "seed": 5}, path=CHAT)
    mine, theirs = service.requests[0], other_service.requests[0]
    assert (mine.prompt_ids, mine.params, mine.seed) == (theirs.prompt_ids, theirs.params, theirs.seed)
    choice = other.json()["choices"][0]
    (part,) = response["output"][0]["content"]
    assert part["text"] == choice["message"]["content"]
    assert part["logprobs"] == ((choice["logprobs"] or {}).get("content") or [])
    assert response["usage"]["output_tokens"] == other.json()["usage"]["completion_tokens"]
    assert response["seed"] == 5


@pytest.mark.parametrize(("body", "equal"), EQUAL)
async def test_a_streamed_response_ends_with_the_one_that_is_not_streamed(body, equal):
    whole = (await post({**body, "seed": 5}))[0].json()
    reply, _ = await post({**body, "seed": 5, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream") and "[DONE]" not in reply.text
    found = events(reply.text)
    last = found[-1]["response"]
    assert found[-1]["type"] == f"response.{whole['status']}"
    for response in (whole, last):
        ident = response.pop("id").removeprefix("resp_")
        assert response["output"][0].pop("id") == f"msg_{ident}_0"
        response.pop("metrics", None)
        response.pop("created_at")
    assert last == whole


async def test_input_tokens_are_those_of_the_prompt():
    fields = {"instructions": "be short", "input": [{"role": "user", "content": "Hi"}]}
    reply, _ = await post({**BASE, **fields}, path=f"{PATH}/input_tokens")
    _, service = await post({**BASE, **fields})
    assert reply.json() == {
        "object": "response.input_tokens",
        "input_tokens": len(service.requests[0].prompt_ids),
    }


async def test_an_error_after_the_first_token_is_a_failed_response():
    service = FakeService()
    service.between = EngineError("the service stops")
    reply, _ = await post({**BASE, "stream": True}, service)
    last = events(reply.text)[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["message"] == "the service stops"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"store": True}, 400, "store"),
        ({"max_output_tokens": 500}, 400, "max_output_tokens"),
        ({"input": "x" * 500}, 400, "input"),
        ({"reasoning": {"effort": "huge"}}, 400, "reasoning"),  # as for all values that the schema excludes
        ({"text": {"verbosity": "low"}}, 400, "text.verbosity"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, 400, "tools"),
        ({"max_output_tokens": "7"}, 400, "max_output_tokens"),
        ({"input": [{"role": "nobody", "content": "x"}]}, 400, "input"),
        ({"input": [{"role": "user", "content": 5}]}, 400, "input"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_errors_have_openais_shape_and_name_the_field_of_this_api(fields, status, param):
    reply, service = await post({**BASE, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param) and not service.requests
    assert param.split(".")[0] in error["message"] or error["code"] == "context_length_exceeded"
    for name in ("max_completion_tokens", "response_format", "reasoning_effort", "max_tokens", "[message]"):
        assert name not in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_names_the_field_of_this_api(stream):
    service = FakeService()
    service.before = RequestError("response_format: oneOf is not supported", "response_format")
    reply, _ = await post({**BASE, "stream": stream}, service)
    error = reply.json()["error"]
    assert (error["param"], error["message"]) == ("text.format", "text.format: oneOf is not supported")


async def test_an_error_in_an_item_says_where_it_is():
    reply, _ = await post({**BASE, "input": [{"role": "user", "content": "x"}, {"type": "function_call", "name": "f"}]})
    assert reply.json()["error"]["message"] == "input[1].call_id is required"


async def test_explain_adds_the_steps_of_the_chat_request():
    text = "Hello thé there"
    expected = (await post(chat(explain=True), Explained(text), CHAT))[0].json()["choices"][0]["steps"]
    whole = (await post({**BASE, "explain": True}, Explained(text)))[0].json()
    assert whole["steps"] == expected and len(expected) > 3
    assert whole["output"][0]["content"][0]["text"] == text
    found = events((await post({**BASE, "explain": True, "stream": True}, Explained(text)))[0].text)
    sent = [step for event in found for step in event.get("steps", ())]
    assert found[-1]["response"]["steps"] == expected and sent == expected[: len(sent)] and len(sent) > 3
    for event in found:
        assert "steps" not in event or event["type"] == "response.output_text.delta"


@pytest.mark.parametrize("stream", [False, True])
async def test_without_explain_there_are_no_steps(stream):
    reply, service = await post({**BASE, "stream": stream, "explain": False}, Explained("Hello there"))
    assert reply.status_code == 200 and '"steps"' not in reply.text and not service.requests[0].explain
