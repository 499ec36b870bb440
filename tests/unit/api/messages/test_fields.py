import pytest

from medusa_dist.api.messages.fields import COUNT_FIELDS, MESSAGES_FIELDS
from medusa_dist.api.messages.schema import CountTokensRequest, MessagesRequest
from medusa_dist.api.schema.fields import Use
from medusa_dist.errors import RequestError
from tests.support import anthropic_shapes
from tests.support.fake_service import FakeService, client_of

ASKS = {  # a value that asks for something, per refused field
    "speed": "fast",
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "mcp_servers": [{"type": "url", "name": "n", "url": "u"}],
    "container": "container_1",
    "diagnostics": {"previous_message_id": "msg_1"},
    "inference_geo": "eu",
}
USER = {"role": "user", "content": "Hi"}
USE = {"type": "tool_use", "id": "c"}
BASE = {"model": FakeService.name, "messages": [USER], "max_tokens": 100}


def request(**fields):
    return MessagesRequest.model_validate({**BASE, **fields})


def with_block(block, role="user"):
    return {"messages": [{"role": role, "content": [block]}, USER]}


def by_use(use):
    return [name for name, rule in MESSAGES_FIELDS.items() if rule.use is use]


def test_the_tables_cover_anthropics_client_and_the_schema():
    assert set(MESSAGES_FIELDS) >= anthropic_shapes.CREATE_FIELDS
    assert set(COUNT_FIELDS) >= anthropic_shapes.COUNT_FIELDS
    assert set(MessagesRequest.model_fields) == set(MESSAGES_FIELDS)
    assert set(CountTokensRequest.model_fields) == set(COUNT_FIELDS)


@pytest.mark.parametrize("name", by_use(Use.REFUSED))
def test_a_refused_field_is_named_unless_it_asks_for_nothing(name):
    with pytest.raises(RequestError) as caught:
        request(**{name: ASKS[name]})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
    for neutral in (None, *MESSAGES_FIELDS[name].neutral):
        request(**{name: neutral})


async def test_accepted_fields_change_nothing_in_the_engine():
    async def engine_request(**fields):
        service = FakeService("ok")
        async with client_of(service) as client:
            reply = await client.post("/v1/messages", json={**BASE, "seed": 1, **fields})
        assert reply.status_code == 200, reply.text
        return service.requests[0].params, service.requests[0].prompt_ids

    plain = await engine_request()
    for name in by_use(Use.ACCEPTED):
        assert await engine_request(**{name: "x"}) == plain, name


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stop": "x"}, "stop", "did you mean"),
        (with_block({"type": "image", "source": {}}), "messages", "'image'"),
        (with_block({"type": "document", "source": {}}), "messages", "'document'"),
        (with_block({"type": "redacted_thinking", "data": "x"}, "assistant"), "messages", "redacted_thinking"),
        (with_block({"type": "thinking", "thinking": "x"}), "messages", "user message cannot have a thinking"),
        (with_block({"type": "text", "txt": "x"}), "messages[].content[].txt", "messages[].content[].text"),
        (
            with_block({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": {}}]}),
            "messages",
            "'image'",
        ),
        ({"system": [{"type": "image"}]}, "system", "'image'"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{**USE, "name": "f", "input": {}}]}]},
            "messages",
            "results must follow",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools", "'bash_20250124'"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice", "tool_choice.name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking", "lower than max_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields, param, words):
    with pytest.raises(RequestError) as caught:
        request(**fields)
    assert caught.value.param == param and words in caught.value.message


def test_null_means_the_default():
    nulls = {name: None for name in MESSAGES_FIELDS if name not in ("messages", "max_tokens")}
    assert request(**nulls).model_dump() == request(model=None).model_dump()
