import pytest
from pydantic import ValidationError

from medusa_dist.api.messages.schema import CountTokensRequest, MessagesRequest
from medusa_dist.api.messages.to_chat import chat_body, chat_messages
from medusa_dist.api.schema.requests import ChatRequest

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
USER = {"role": "user", "content": "Hi"}
BASE = {"model": "m", "max_tokens": 9, "messages": [USER]}
CACHED = {"cache_control": {"type": "ephemeral"}}


def body_of(**fields):
    return chat_body(MessagesRequest.model_validate({**BASE, **fields}))


def messages_of(*messages, **fields):
    return chat_messages(MessagesRequest.model_validate({**BASE, "messages": list(messages), **fields}))


def text(text):
    return {"type": "text", "text": text}


def use(id, **values):
    return {"type": "tool_use", "id": id, "name": "find", "input": values}


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({}, {}),
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 3}, {"temperature": 0.0, "top_p": 0.5, "top_k": 3}),
        ({"stop_sequences": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"stop_sequences": []}, {}),
        (
            {"stream": True},
            {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        ),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto", **CACHED}, {}),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 8, "display": "omitted"}},
            {"thinking": {"type": "enabled", "budget_tokens": 8}, "include_reasoning": False},
        ),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "output", "schema": SCHEMA},
                }
            },
        ),
        (
            {"tools": [{"name": "find", "description": "d", "input_schema": SCHEMA, **CACHED}]},
            {
                "tools": [
                    {"type": "function", "function": {"name": "find", "description": "d", "parameters": SCHEMA}},
                ]
            },
        ),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tool_choice": {"type": "tool", "name": "find"}},
            {"tool_choice": {"type": "function", "function": {"name": "find"}}},
        ),
        ({"seed": 5, "min_p": 0.1}, {"seed": 5, "min_p": 0.1}),
    ],
    ids=lambda value: next(iter(value), "none"),
)
def test_each_field_becomes_its_chat_field(fields, chat):
    assert body_of(**fields) == {"model": "m", "messages": [USER], "max_completion_tokens": 9, **chat}


@pytest.mark.parametrize(
    ("system", "content"),
    [("a", "a"), ([text("a")], "a"), ([{**text("a"), **CACHED}, text("b")], [text("a"), text("b")])],
)
def test_the_system_prompt_is_the_first_message(system, content):
    assert messages_of(USER, system=system) == [{"role": "system", "content": content}, USER]


def test_messages_of_one_role_that_follow_each_other_are_one():
    assert messages_of(
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{**text("b"), **CACHED}]},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": [text("d")]},
        {"role": "system", "content": "e"},
        {"role": "user", "content": "f"},
    ) == [
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": [text("c"), text("d")]},
        {"role": "system", "content": "e"},
        {"role": "user", "content": "f"},
    ]


def test_answer_blocks_are_one_message_and_results_are_tool_messages():
    messages = messages_of(
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
                text("I look"),
                use("c1", q="thé"),
                use("c2"),
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "x", **CACHED},
                {"type": "tool_result", "tool_use_id": "c2", "content": [text("y"), text("z")], "is_error": True},
                text("go on"),
            ],
        },
    )
    functions = [{"name": "find", "arguments": arguments} for arguments in ('{"q": "thé"}', "{}")]
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "I look",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": id, "type": "function", "function": f} for id, f in zip(("c1", "c2"), functions, strict=True)
            ],
        },
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
        {"role": "tool", "content": [text("Error: y"), text("z")], "tool_call_id": "c2"},
        {"role": "user", "content": "go on"},
    ]


@pytest.mark.parametrize(
    ("result", "content"),
    [({}, ""), ({"content": []}, ""), ({"is_error": True}, "Error: "), ({"content": "x", "is_error": False}, "x")],
)
def test_a_result_may_be_empty(result, content):
    block = {"type": "tool_result", "tool_use_id": "c", **result}
    (message,) = messages_of({"role": "user", "content": [block]})
    assert message == {"role": "tool", "content": content, "tool_call_id": "c"}


def test_an_assistant_message_of_calls_alone_has_no_content():
    messages = messages_of({"role": "assistant", "content": [use("c")]}, USER)
    assert messages[0]["content"] is None and len(messages[0]["tool_calls"]) == 1


def test_plain_conversations_are_valid_chat_requests():
    turns = [USER, {"role": "assistant", "content": "a"}, USER]
    ChatRequest.model_validate(body_of(messages=turns, system=[text("a")], stream=True, seed=1))


def test_counting_has_the_same_messages_and_needs_no_max_tokens():
    given = {"model": "m", "messages": [USER], "system": "s"}
    body = chat_body(CountTokensRequest.model_validate(given))
    assert body == {"model": "m", "messages": [{"role": "system", "content": "s"}, USER]}


def test_an_assistant_message_at_the_end_is_continued():
    given = {"model": "m", "messages": [USER, {"role": "assistant", "content": "I th"}]}
    for body in (body_of(**given), chat_body(CountTokensRequest.model_validate(given))):
        assert body["continue_final_message"] is True and body["messages"] == given["messages"]


def test_values_of_a_wrong_type_are_not_translated():
    for fields in ({"max_tokens": None}, {"max_tokens": 0}, {"messages": []}, {"stop_sequences": "x"}, {"tools": [{}]}):
        with pytest.raises(ValidationError):
            body_of(**fields)
