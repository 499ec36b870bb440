"""/openapi.json against the request models: bodies that one takes and the other refuses."""

import jsonschema
import pydantic
import pytest

from medusa_dist.api.messages.schema import MessagesRequest
from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest, TokenizeRequest
from medusa_dist.errors import RequestError
from tests.support.fake_service import FakeService, chat, client_of, completion

HI = {"role": "user", "content": "Hi"}


def messages(block=None):
    return {"max_tokens": 5, "messages": [{"role": "user", "content": [block] if block else "Hi"}]}


TOOL = {"type": "function", "function": {"name": "a"}}
BODIES = {
    "whole bound": (ChatRequest, chat(max_tokens=0), False),
    "written as a float": (ChatRequest, chat(max_tokens=16.0), True),
    "refused field": (ChatRequest, chat(verbosity="low"), False),
    "refused field, neutral": (ChatRequest, chat(verbosity="medium"), True),
    "refused field, equal as JSON": (CompletionRequest, completion(best_of=1.0), True),
    "refused field, true is no 1": (CompletionRequest, completion(best_of=True), False),
    "usage without stream": (ChatRequest, chat(stream_options={"include_usage": True}), False),
    "usage with stream": (ChatRequest, chat(stream=True, stream_options={"include_usage": True}), True),
    "contradictory usage": (
        ChatRequest,
        chat(stream=True, stream_options={"include_usage": False, "continuous_usage_stats": True}),
        False,
    ),
    "obfuscation": (ChatRequest, chat(stream=True, stream_options={"include_obfuscation": True}), False),
    "prompt_logprobs with stream": (ChatRequest, chat(stream=True, prompt_logprobs=1), False),
    "nothing to truncate to": (ChatRequest, chat(truncate_prompt_tokens=0), False),
    "a side of no truncation": (ChatRequest, chat(truncation_side="left"), False),
    "a side of a truncation": (ChatRequest, chat(truncation_side="left", truncate_prompt_tokens=5), True),
    "top_logprobs alone": (ChatRequest, chat(top_logprobs=2), False),
    "top_logprobs 0 alone": (ChatRequest, chat(top_logprobs=0), True),
    "continued and begun": (ChatRequest, chat(continue_final_message=True, add_generation_prompt=True), False),
    "continued": (ChatRequest, chat(continue_final_message=True, add_generation_prompt=False), True),
    "nothing asked": (CompletionRequest, completion(max_tokens=0), False),
    "echo asked": (CompletionRequest, completion(max_tokens=0, echo=True), True),
    "both prompts": (TokenizeRequest, {"prompt": "a", "messages": [HI]}, False),
    "one prompt": (TokenizeRequest, {"prompt": "a", "messages": None}, True),
    "no prompt": (TokenizeRequest, {}, False),
    "user without content": (ChatRequest, {"messages": [{"role": "user"}]}, False),
    "assistant without content": (ChatRequest, {"messages": [HI, {"role": "assistant"}]}, True),
    "result without id": (ChatRequest, {"messages": [{"role": "tool", "content": "a"}]}, False),
    "result with id": (ChatRequest, {"messages": [{"role": "tool", "content": "a", "tool_call_id": ""}]}, True),
    "user with id": (ChatRequest, {"messages": [HI | {"tool_call_id": "a"}]}, False),
    "user with calls": (
        ChatRequest,
        {"messages": [HI | {"tool_calls": [{"function": {"name": "a"}}]}]},
        False,
    ),
    "choice without name": (ChatRequest, chat(tools=[TOOL], tool_choice={"type": "function"}), False),
    "choice": (ChatRequest, chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "a"}}), True),
    "schema without type": (ChatRequest, chat(response_format={"type": "json_schema"}), False),
    "json_object": (ChatRequest, chat(response_format={"type": "json_object"}), True),
    "two grammars": (ChatRequest, chat(structured_outputs={"regex": "a", "choice": ["a"]}), False),
    "typical threshold": (ChatRequest, chat(acceptance="typical", typical_epsilon=0.5), True),
    "block of another role": (MessagesRequest, messages({"type": "thinking", "thinking": "a"}), False),
    "block of its role": (MessagesRequest, messages({"type": "text", "text": "a"}), True),
    "tool without name": (MessagesRequest, messages() | {"tool_choice": {"type": "tool"}}, False),
    "name without tool": (MessagesRequest, messages() | {"tool_choice": {"type": "auto", "name": "a"}}, False),
    "no items": (ResponsesRequest, {"input": []}, False),
    "reasoning that nobody can read": (
        ResponsesRequest,
        {"input": [{"type": "reasoning", "encrypted_content": "a"}]},
        False,
    ),
    "top_logprobs that are not included": (ResponsesRequest, {"input": "a", "top_logprobs": 2}, False),
    "top_logprobs that are included": (
        ResponsesRequest,
        {"input": "a", "top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        True,
    ),
    "no grammar": (ChatRequest, chat(structured_outputs={"json_object": False}), False),
    "one grammar": (ChatRequest, chat(structured_outputs={"regex": "a", "json_object": False}), True),
}


@pytest.mark.parametrize("model, body, is_valid", BODIES.values(), ids=BODIES)
def test_schema_and_model_agree(model, body, is_valid):
    assert jsonschema.Draft202012Validator(model.model_json_schema()).is_valid(body) is is_valid
    try:
        model.model_validate(body)
    except (pydantic.ValidationError, RequestError):
        assert not is_valid
    else:
        assert is_valid


async def test_allow_names_the_methods_of_all_routes_with_a_path():
    async with client_of(FakeService()) as client:
        reply = await client.options("/ping")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_zero_is_not_false(path):
    flag = {"name": "a", "defer_loading": 0}
    body = {
        "/v1/responses": {"input": "Hi", "tools": [flag | {"type": "function"}]},
        "/v1/messages": {"max_tokens": 5, "messages": [HI], "tools": [flag | {"input_schema": {}}]},
    }[path]
    async with client_of(FakeService()) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 400 and "must be false" in reply.json()["error"]["message"]


async def test_typical_threshold_alone_fits_no_schema_and_is_refused():
    body = chat(typical_epsilon=0.5)
    assert not jsonschema.Draft202012Validator(ChatRequest.model_json_schema()).is_valid(body)
    async with client_of(FakeService()) as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
