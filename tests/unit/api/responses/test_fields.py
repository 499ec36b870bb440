import typing

import pytest
from openai.types.responses import response_create_params

from medusa_dist.api.responses.fields import RESPONSES_FIELDS
from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.schema.fields import Use
from medusa_dist.errors import RequestError
from tests.support.fake_service import FakeService, client_of

ASKS = {  # a value that asks for something, per refused field
    "truncation": "auto",
    "store": True,
    "previous_response_id": "resp_1",
    "conversation": {"id": "conv_1"},
    "background": True,
    "background_options": {"completion_window": "2h"},
    "prompt": {"id": "pmpt_1"},
    "context_management": [{"type": "compaction"}],
    "moderation": {"model": "m"},
    "access_programs": {"cyber": "standard"},
}
LABELS = {"metadata": {"a": "b"}, "image": {"context_compression": "auto"}, "max_tool_calls": 3}
ITEM = {"type": "message", "role": "user", "content": "x"}


def request(**fields):
    return ResponsesRequest.model_validate({"model": FakeService.name, "input": "Hi", **fields})


def by_use(use):
    return [name for name, rule in RESPONSES_FIELDS.items() if rule.use is use]


def test_the_table_covers_openais_client_and_the_schema():
    asked = set(typing.get_type_hints(response_create_params.ResponseCreateParamsBase)) | {"stream"}
    assert asked <= set(RESPONSES_FIELDS)
    assert set(ResponsesRequest.model_fields) == set(RESPONSES_FIELDS)


@pytest.mark.parametrize("name", by_use(Use.REFUSED))
def test_a_refused_field_is_named_unless_it_asks_for_nothing(name):
    with pytest.raises(RequestError) as caught:
        request(**{name: ASKS[name]})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
    for neutral in (None, *RESPONSES_FIELDS[name].neutral):
        request(**{name: neutral})


async def test_accepted_fields_change_nothing_in_the_engine():
    async def engine_request(**fields):
        service = FakeService("ok")
        async with client_of(service) as client:
            body = {"model": FakeService.name, "input": "Hi", "seed": 1, **fields}
            reply = await client.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        return service.requests[0].params, service.requests[0].prompt_ids

    plain = await engine_request()
    for name in by_use(Use.ACCEPTED):
        assert await engine_request(**{name: LABELS.get(name, "x")}) == plain, name


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"inputs": "x"}, "inputs", "did you mean input"),
        ({"top_logprobs": 2}, "top_logprobs", "message.output_text.logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream: true"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "send the item itself"),
        ({"input": [{"type": "computer_call"}]}, "input", "'computer_call' are not supported"),
        ({"input": [{**ITEM, "content": [{"type": "input_image", "image_url": "u"}]}]}, "input", "'input_image'"),
        ({"input": [{**ITEM, "content": [{"type": "refusal", "refusal": "no"}]}]}, "input", "'refusal'"),
        ({"input": [{**ITEM, "roles": "user"}]}, "input[].roles", "did you mean input[].role"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input", "encrypted_content"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search'"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search'"),
        ({"tool_choice": {"type": "function", "mode": "auto"}}, "tool_choice.mode", "known fields: type, name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text", "text.format.schema"),
        ({"text": {"format": {"type": "text", "regex": "x"}}}, "text.format.regex", "unknown field"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields, param, words):
    with pytest.raises(RequestError) as caught:
        request(**fields)
    assert caught.value.param == param and words in caught.value.message


def test_null_means_the_default():
    nulls = {name: None for name in RESPONSES_FIELDS if name != "input"}
    assert request(**nulls).model_dump() == request(model=None).model_dump()
