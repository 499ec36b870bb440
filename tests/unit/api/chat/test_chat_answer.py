"""Tool calls and reasoning over HTTP: requests, whole answers and streams, with a scripted model."""

import json
from typing import Any

import pytest

from medusa_dist.grammar import GrammarKind
from medusa_dist.text.tools.chat_format import ChatFormat
from medusa_dist.text.tools.formats import FORMATS
from medusa_dist.text.tools.reasoning import REASONING
from tests.support.fake_service import EOS, FakeService, chat, client_of
from tests.support.tool_cases import CALLS, SCHEMAS, marks_tokenizer, write_calls

CHAT = "/v1/chat/completions"
HERMES = FORMATS["hermes"]
PLAIN_HERMES = ChatFormat(HERMES)
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
WEATHER = {"city": 'Par"is ☔}', "days": 3, "now": True}


class ScriptedService(FakeService):
    """Answers with one text, in portions of one token."""

    def __init__(self, text: str, chat_format: ChatFormat = PLAIN_HERMES, tokenizer: Any = None) -> None:
        super().__init__(text, portion=1)
        self.chat_format = chat_format
        self.max_model_len = 4000
        if tokenizer is not None:
            self.tokenizer, self.vocab_size = tokenizer, len(tokenizer)
            self.tokens = lambda _: (*tokenizer(text, add_special_tokens=False)["input_ids"], EOS)


async def post(service: FakeService, **fields: Any) -> Any:
    async with client_of(service) as client:
        reply = await client.post(CHAT, json=chat(**fields))
        assert reply.status_code == 200, reply.text
        return reply


async def refused(service: FakeService, **fields: Any) -> dict[str, Any]:
    async with client_of(service) as client:
        reply = await client.post(CHAT, json=chat(**fields))
        assert reply.status_code == 400, reply.text
        return reply.json()["error"]


async def streamed(service: FakeService, **fields: Any) -> list[dict[str, Any]]:
    """The choices of all chunks."""
    text = (await post(service, stream=True, **fields)).text
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event.startswith("data: {")]
    return [json.loads(event)["choices"][0] for event in events]


def rebuilt(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together from a stream."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for choice in choices:
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                assert piece["index"] == len(message["tool_calls"])
                assert (piece["type"], piece["function"]["arguments"]) == ("function", "")
                message["tool_calls"].append({"name": piece["function"]["name"], "arguments": ""})
            else:
                message["tool_calls"][piece["index"]]["arguments"] += piece["function"]["arguments"]
    return message


async def test_calls_are_answered_whole_with_ids_and_the_reason_tool_calls() -> None:
    text = "Let me see.\n" + write_calls(HERMES, CALLS)
    choice = (await post(ScriptedService(text), tools=TOOLS)).json()["choices"][0]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", "Let me see.\n")
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    assert calls == [(name, dict(values)) for name, values in CALLS]
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == len(CALLS) and all(one.startswith("call_") for one in ids)


async def test_content_is_null_beside_calls_without_text() -> None:
    choice = (await post(ScriptedService(write_calls(HERMES, CALLS[:1])), tools=TOOLS)).json()["choices"][0]
    assert choice["message"]["content"] is None


async def test_stream_of_calls_rebuilds_to_the_whole_answer_and_ends_apart_from_text() -> None:
    choices = await streamed(ScriptedService("So:" + write_calls(HERMES, CALLS)), tools=TOOLS)
    message = rebuilt(choices)
    assert message["content"] == "So:"
    calls = [(call["name"], json.loads(call["arguments"])) for call in message["tool_calls"]]
    assert calls == [(name, dict(values)) for name, values in CALLS]
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == "tool_calls"
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert sum("arguments" in str(choice["delta"]) for choice in choices) > 20  # as they come


async def test_each_token_has_its_logprobs_once_in_a_stream_with_calls() -> None:
    service = ScriptedService("So:" + write_calls(HERMES, CALLS[:1]))
    choices = await streamed(service, tools=TOOLS, logprobs=True)
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert len(entries) == len(service.tokens(service.requests[0]))


async def test_reasoning_is_split_off_whole_and_streamed() -> None:
    chat_format = ChatFormat(HERMES, REASONING["think"])
    text = "<think>\nhm\n</think>\n\nYes."
    message = (await post(ScriptedService(text, chat_format))).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")
    message = rebuilt(await streamed(ScriptedService(text, chat_format)))
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")


async def test_marks_that_are_special_tokens_are_read_and_not_shown() -> None:
    form = FORMATS["mistral"]
    service = ScriptedService(write_calls(form, CALLS), ChatFormat(form), marks_tokenizer())
    choice = (await post(service, tools=TOOLS)).json()["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == [name for name, _ in CALLS]
    assert choice["message"]["content"] is None
    assert all(len(call["id"]) == 9 and call["id"].isalnum() for call in choice["message"]["tool_calls"])


async def test_call_cut_by_max_tokens_ends_with_length() -> None:
    choice = (await post(ScriptedService(write_calls(HERMES, CALLS)), tools=TOOLS, max_tokens=60)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


async def test_tools_and_choice_make_the_grammar_of_the_request() -> None:
    service = ScriptedService("hi")
    for fields, has_grammar in (
        ({}, False),
        ({"tools": []}, False),
        ({"tools": TOOLS, "tool_choice": "none"}, False),
        ({"tools": TOOLS}, True),
        ({"tools": TOOLS, "tool_choice": "required"}, True),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, True),
    ):
        await post(service, **fields)
        grammar = service.requests[-1].params.grammar
        assert (grammar is not None) is has_grammar, fields
        if grammar is not None:
            assert grammar.kind is GrammarKind.ANSWER
            assert (grammar.body is not None) is ("response_format" in fields)


async def test_named_choice_allows_its_tool_alone() -> None:
    service = ScriptedService("hi")
    named = {"type": "function", "function": {"name": "get"}}
    await post(service, tools=TOOLS, tool_choice=named)
    await post(
        service,
        tools=TOOLS,
        tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}},
    )
    for request in service.requests:
        text = request.params.grammar.text
        assert '{\\"name\\": \\"get\\"' in text and "get_weather" not in text


async def test_structured_output_of_a_reasoning_model_starts_behind_its_reasoning() -> None:
    service = ScriptedService("hi", ChatFormat(None, REASONING["think"]))
    await post(service, response_format={"type": "json_object"})
    grammar = service.requests[-1].params.grammar
    assert grammar.kind is GrammarKind.ANSWER and grammar.body.kind is GrammarKind.JSON_OBJECT


async def test_template_without_tools_gets_them_as_text() -> None:
    service = ScriptedService("hi")
    history = [
        {"role": "user", "content": "And in Rome?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "18 C"},
    ]
    await post(service, tools=TOOLS, messages=history)
    prompt = service.tokenizer.decode(service.requests[-1].prompt_ids)
    assert "<tools>" in prompt and '"name": "get_weather"' in prompt
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in prompt
    assert "<tool_response>\n18 C\n</tool_response>" in prompt


async def test_template_with_tools_gets_tools_calls_as_objects_and_names_of_results() -> None:
    service = ScriptedService("hi", ChatFormat(HERMES, None, renders_tools=True), marks_tokenizer())
    service.tokenizer.chat_template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{{ m.role }}"
        "{% for c in m.tool_calls or [] %}({{ c.function.arguments.city }} {{ c.id }}){% endfor %}"
        "{{ m.name or '' }}{{ m.content }};{% endfor %}"
    )
    call = {"id": "x1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "x1", "content": "18 C"}]
    await post(service, tools=TOOLS[:1], messages=messages)
    prompt = service.tokenizer.decode(service.requests[-1].prompt_ids)
    assert prompt == "[get_weather]assistant(Rome x1);toolget_weather18 C;"


async def test_answered_message_can_be_sent_back_unchanged() -> None:
    service = ScriptedService(write_calls(HERMES, CALLS[:1]))
    message = (await post(service, tools=TOOLS)).json()["choices"][0]["message"]
    result = {
        "role": "tool",
        "tool_call_id": message["tool_calls"][0]["id"],
        "content": [{"type": "text", "text": "ok"}],
    }
    await post(service, tools=TOOLS, messages=[{"role": "user", "content": "hi"}, message, result])
    assert "☔" in service.tokenizer.decode(service.requests[-1].prompt_ids)


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def called(**function: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}]}


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"tools": [tool("a b")]}, "tools", "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools", "two tools have the same name"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools of type 'web_search' are not supported"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools", 'f: parameters must be a JSON schema with "type"'),
        (
            {"tools": [tool(parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}})]},
            "tools",
            "tools: f: parameters: properties.a: uniqueItems: it cannot be enforced",
        ),
        ({"tool_choice": "required"}, "tool_choice", '"required" needs tools'),
        ({"tools": [tool()], "tool_choice": "f"}, "tool_choice", "tool_choice"),
        (
            {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "there is no tool 'g' in tools",
        ),
        ({"tools": [tool()], "beam_width": 2, "n": 2, "temperature": 0}, "tools", "cannot be used with beam_width"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice", "needs function"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        (called(name="f", arguments="{"), "messages", "arguments is not JSON"),
        (called(name="f", arguments="[1]"), "messages", "arguments must be a JSON object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "needs tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages", "belongs to role 'tool'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_bad_tools_choices_and_calls_are_refused_by_field(fields: dict[str, Any], param: str, text: str) -> None:
    error = await refused(ScriptedService("hi"), **fields)
    assert error["param"].startswith(param) and text in error["message"], error


async def test_model_without_a_tool_format_refuses_tools_naming_the_config_key() -> None:
    error = await refused(ScriptedService("hi", ChatFormat()), tools=TOOLS)
    assert error["param"] == "tools" and "config key tool_format" in error["message"]


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "ok"}]


def with_property(schema: Any) -> dict[str, Any]:
    return {"tools": [tool(parameters={"type": "object", "properties": {"a": schema}})]}


@pytest.mark.parametrize("name", ["hermes", "pythonic", "qwen3_coder"])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"tools": [tool(parameters={"type": "array"})]},
            "tools",
            "tools: f: parameters must be a JSON schema with",
        ),
        (with_property("string"), "tools", "tools: f: parameters: properties.a: a schema must be an object"),
        (with_property({"type": "str"}), "tools", "tools: f: parameters: properties.a: type: its value"),
        (
            with_property({"$ref": "#/x"}),
            "tools",
            "tools: f: parameters: properties.a: $ref: there is nothing",
        ),
        (
            {"tools": [tool(parameters={"properties": {"a": {}}, "required": ["b"]})]},
            "tools",
            "tools: f: parameters: required: there is no property 'b'",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "tools[0].function.name is required"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[].name", "unknown field tools[].name"),
        ({"messages": called("{")}, "messages", "messages[].tool_calls[].function.arguments is not JSON"),
        ({"messages": called("[1]")}, "messages", "messages[].tool_calls[].function.arguments must be a JSON object"),
        ({"messages": called({"a": 1})}, "messages", "messages[1].tool_calls[0].function.arguments: Input should be"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:40],
)
async def test_malformed_tools_and_calls_get_one_clear_answer_in_every_kind_of_format(
    name: str, fields: dict[str, Any], param: str, words: str
) -> None:
    service = ScriptedService("hi", ChatFormat(FORMATS[name]))
    error = await refused(service, **fields)
    assert error["param"] == param and error["message"].startswith(words.replace("messages[1]", "messages[0]"))
    assert not service.requests


async def test_calls_of_a_history_without_a_tool_format_are_refused_as_tools_are() -> None:
    error = await refused(ScriptedService("hi", ChatFormat()), messages=called("{}"))
    assert error["param"] == "tools" and "tool_format" in error["message"]


async def test_response_format_and_tools_are_one_grammar_and_a_wrong_schema_is_named() -> None:
    service = ScriptedService("hi")
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    await post(service, tools=TOOLS, response_format=wanted)
    grammar = service.requests[-1].params.grammar
    assert grammar.kind is GrammarKind.ANSWER and "@body" in grammar.text
    assert grammar.body.kind is GrammarKind.JSON_SCHEMA
    wanted["json_schema"]["schema"] = {"type": "objekt"}  # type: ignore[index]
    error = await refused(service, tools=TOOLS, response_format=wanted)
    assert error["param"] == "response_format" and "type: its value must be one of" in error["message"]
