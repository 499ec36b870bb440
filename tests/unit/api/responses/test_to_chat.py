import pytest
from pydantic import ValidationError

from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.responses.to_chat import chat_body, chat_messages
from medusa_dist.api.schema.requests import ChatRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
USER = {"role": "user", "content": "Hi"}


def body_of(**fields):
    return chat_body(ResponsesRequest.model_validate({"model": "m", "input": "Hi", **fields}))


def messages_of(*items, **fields):
    return chat_messages(ResponsesRequest.model_validate({"model": "m", "input": list(items), **fields}))


def call(call_id, **more):
    return {"type": "function_call", "call_id": call_id, "name": "find", "arguments": '{"q": 1}', **more}


def test_a_text_is_a_user_message_and_nothing_else_is_set():
    assert body_of() == {"model": "m", "messages": [USER]}


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({"max_output_tokens": 7}, {"max_completion_tokens": 7}),
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 3}, {"temperature": 0.0, "top_p": 0.5, "top_k": 3}),
        ({"stop": "x"}, {"stop": "x"}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"stream": False}, {"stream": False}),
        (
            {"stream": True},
            {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        ),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"reasoning": {"effort": "low", "summary": "detailed"}}, {"reasoning_effort": "low"}),
        ({"seed": 5, "speculation": "off"}, {"seed": 5, "speculation": "off"}),
        ({"metadata": {"a": "b"}, "store": False, "truncation": "disabled", "user": "u"}, {}),
        (
            {"tools": [{"type": "function", "name": "find", "description": "d", "parameters": SCHEMA, "strict": True}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "find", "description": "d", "parameters": SCHEMA, "strict": True},
                    }
                ]
            },
        ),
        ({"tools": [], "tool_choice": "auto"}, {"tool_choice": "auto"}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "function", "name": "find"}},
            {"tool_choice": {"type": "function", "function": {"name": "find"}}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "find"}],
                }
            },
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "find"}}]},
                }
            },
        ),
    ],
    ids=lambda value: next(iter(value), "none"),
)
def test_each_field_becomes_its_chat_field(fields, chat):
    assert body_of(**fields) == {"model": "m", "messages": [USER], **chat}


def test_instructions_and_leading_system_messages_are_one_system_message():
    developer = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]}
    assert messages_of(developer, {"role": "user", "content": "c"}, instructions="a") == [
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]


def test_what_one_answer_had_is_one_assistant_message():
    messages = messages_of(
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look", "annotations": [], "logprobs": []}],
        },
        call("c1", id="fc1", status="completed"),
        call("c2"),
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "y"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "c"},
    )
    function = {"name": "find", "arguments": '{"q": 1}'}
    assert messages == [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "I look",
            "reasoning_content": "hm",
            "tool_calls": [{"id": id, "type": "function", "function": function} for id in ("c1", "c2")],
        },
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
        {"role": "tool", "content": "y", "tool_call_id": "c2"},
        {"role": "assistant", "content": "b", "reasoning_content": "so"},
        {"role": "assistant", "content": "c"},
    ]


def test_calls_after_another_role_begin_an_assistant_message():
    messages = messages_of({"role": "user", "content": "a"}, call("c1"), {"role": "user", "content": "b"}, call("c2"))
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]


def test_plain_conversations_are_valid_chat_requests():
    items = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": ""}]
    ChatRequest.model_validate(body_of(input=[*items, USER], seed=1, stream=True))


def test_values_of_a_wrong_type_are_not_translated():
    for fields in ({"max_output_tokens": "7"}, {"input": []}, {"tools": [{"type": "function"}]}, {"top_logprobs": 999}):
        with pytest.raises(ValidationError):
            body_of(**fields)
