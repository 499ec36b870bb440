"""Keys of messages and content parts: each known one has its rule, null is absent, unknown ones are named."""

import typing

import openai.types.chat as openai_chat
import pytest

from medusa_dist.api.schema.fields import MESSAGE_FIELDS, PART_FIELDS, Use
from medusa_dist.api.schema.messages import ChatMessage, TextPart, linked
from tests.support.fake_service import TOKENIZER, FakeService, chat, client_of

CHAT = "/v1/chat/completions"
SAID = {"role": "assistant", "content": "x"}
ASKS = {  # a value that asks for something, per refused key
    "type": "image",
    "tool_calls": [{"id": "1"}],
    "tool_call_id": "1",
    "function_call": {"name": "f"},
    "audio": {"id": "1"},
    "images": [{}],
    "refusal": "no",
    "prefix": True,
    "partial": True,
}


def keys(rules, use):
    return [name for name, rule in rules.items() if rule.use is use]


async def send(*messages):
    service = FakeService()
    async with client_of(service) as client:
        reply = await client.post(CHAT, json=chat(messages=list(messages)))
    return reply, TOKENIZER.decode(service.requests[0].prompt_ids) if service.requests else ""


def test_the_tables_cover_openais_client_and_the_models():
    params = [getattr(openai_chat, name) for name in dir(openai_chat) if name.endswith("MessageParam")]
    asked = {name for one in params for name in getattr(one, "__annotations__", ())}
    assert {"tool_call_id", "refusal"} <= asked
    asked |= set(openai_chat.ParsedChatCompletionMessage.model_fields)
    assert asked <= set(MESSAGE_FIELDS)
    assert set(typing.get_type_hints(openai_chat.ChatCompletionContentPartTextParam)) <= set(PART_FIELDS)
    assert set(ChatMessage.model_fields) == set(keys(MESSAGE_FIELDS, Use.HONOURED))
    assert set(TextPart.model_fields) == set(keys(PART_FIELDS, Use.HONOURED))


@pytest.mark.parametrize("name", keys(MESSAGE_FIELDS, Use.ACCEPTED))
async def test_a_label_changes_nothing(name):
    for value in ("a", 1, {"b": [None]}, []):
        reply, text = await send(SAID | {name: value})
        assert reply.status_code == 200 and text == (await send(SAID))[1]


@pytest.mark.parametrize("name", keys(MESSAGE_FIELDS, Use.REFUSED))
async def test_a_key_with_a_meaning_that_is_not_supported_is_named(name):
    reply, _ = await send(SAID | {name: ASKS[name]})
    error = reply.json()["error"]
    assert reply.status_code == 400 and (error["param"], error["code"]) == ("messages", "unsupported_parameter")
    assert error["message"].startswith(f"messages[].{name} is not supported: ")
    for neutral in (None, *MESSAGE_FIELDS[name].neutral):
        assert (await send(SAID | {name: neutral}))[1] == (await send(SAID))[1]


async def test_null_is_absent_in_messages_and_parts_whatever_the_key():
    part = {"type": "text", "text": "x"}
    nulls = dict.fromkeys((*MESSAGE_FIELDS, "of_tomorrow"))
    for message in ({**nulls, **SAID}, SAID | {"content": [dict.fromkeys((*PART_FIELDS, "of_tomorrow")) | part]}):
        assert (await send(message))[1] == (await send(SAID))[1]
    reply, text = await send(nulls | {"role": "assistant"})
    assert reply.status_code == 200 and text == "<s>assistant\n<eos><s>assistant\n"
    reply, _ = await send({"role": "user", "content": None})
    assert "needs content" in reply.json()["error"]["message"]


@pytest.mark.parametrize("name", keys(PART_FIELDS, Use.ACCEPTED))
async def test_a_label_of_a_part_changes_nothing(name):
    reply, text = await send(SAID | {"content": [{"type": "text", "text": "x", name: {"type": "ephemeral"}}]})
    assert reply.status_code == 200 and text == (await send(SAID))[1]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (SAID | {"nme": "x"}, "messages[].nme"),
        (SAID | {"content": [{"type": "text", "text": "x", "txt": "y"}]}, "messages[].content[].txt"),
    ],
)
async def test_an_unknown_key_is_named(message, names):
    error = (await send(message))[0].json()["error"]
    assert (error["param"], error["code"]) == (names, "unknown_parameter")


async def test_messages_of_evaluation_harnesses_and_chat_plugins_are_taken():
    harness = {"role": "user", "content": "x", "type": "text"}
    plugin = {"role": "user", "content": "x", "id": 1947269257, "opts": {"visible": False}}
    cached = {
        "role": "user",
        "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
    }
    for message in (harness, plugin, cached):
        assert (await send(message))[1] == "<s>user\nx<eos><s>assistant\n"


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
async def test_parts_are_joined_by_a_line_break(kind):
    parts = [{"type": kind, "text": text} for text in ("Count", "to", "", "three")]
    assert (await send({"role": "user", "content": parts}))[1].startswith("<s>user\nCount\nto\n\nthree<eos>")
    assert (await send({"role": "user", "content": []}))[1].startswith("<s>user\n<eos>")


async def test_reasoning_reaches_the_template_of_assistants_only(monkeypatch):
    monkeypatch.setattr(TOKENIZER, "chat_template", "{% for m in messages %}[{{ m.reasoning_content }}]{% endfor %}")
    for keys_, seen in (({"reasoning_content": "r"}, "r"), ({"reasoning": "s"}, "s"), ({}, "")):
        assert (await send(SAID | keys_))[1] == f"[{seen}]"
    assert (await send(SAID | {"reasoning_content": "r", "reasoning": "s"}))[1] == "[r]"
    error = (await send({"role": "user", "content": "x", "reasoning": "r"}))[0].json()["error"]
    assert error["message"] == "messages[].reasoning belongs to role 'assistant', not 'user'"


async def test_the_openapi_document_has_the_rule_of_each_key():
    async with client_of(FakeService()) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    message, part = schemas["ChatMessage"]["properties"], schemas["TextPart"]["properties"]
    assert set(message) == set(MESSAGE_FIELDS) and set(part) == set(PART_FIELDS)
    assert message["opts"]["description"] == "accepted, no effect on the output: a label for the caller's own records"
    assert message["tool_calls"]["description"].startswith("honoured: of an assistant's earlier answer")


async def test_a_result_with_an_empty_tool_call_id_is_taken():
    call = {"id": "", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    turns.append({"role": "tool", "content": "20", "tool_call_id": ""})
    found = linked([ChatMessage.model_validate(turn).turn() for turn in turns])
    assert found[1] == {"role": "tool", "content": "20", "tool_call_id": "", "name": "look"}
