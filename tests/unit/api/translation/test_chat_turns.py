from medusa_dist.api.schema.requests import ChatRequest
from medusa_dist.api.translation.chat_turns import ChatTurns, compact_json


def test_system_texts_before_everything_else_are_one_message():
    turns = ChatTurns()
    turns.system(["a"])
    turns.system(["b", "c"])
    turns.user(["d"])
    turns.system(["e"])
    turns.system(["f"])
    parts = [{"type": "text", "text": text} for text in "abc"]
    assert turns.messages() == [
        {"role": "system", "content": parts},
        {"role": "user", "content": "d"},
        {"role": "system", "content": "e"},
        {"role": "system", "content": "f"},
    ]


def test_user_messages_join_only_if_asked():
    turns = ChatTurns()
    turns.user(["a"])
    turns.user(["b"])
    turns.user(["c"], joins=True)
    assert [len(m["content"]) for m in turns.messages()] == [1, 2]
    ChatRequest.model_validate({"model": "m", "messages": turns.messages()})


def test_an_assistant_message_has_reasoning_text_and_calls():
    turns = ChatTurns()
    turns.assistant(joins=False)
    turns.reasoning("hm")
    turns.reasoning("so")
    turns.assistant(["I look"])
    turns.call("c1", "find", "{}")
    turns.call("c2", "find", "{}")
    turns.tool("c1", ["x"])
    turns.assistant()
    turns.call("c3", "find", "{}")
    function = {"name": "find", "arguments": "{}"}
    calls = [{"id": id, "type": "function", "function": function} for id in ("c1", "c2", "c3")]
    assert turns.messages() == [
        {"role": "assistant", "content": "I look", "reasoning_content": "hm\nso", "tool_calls": calls[:2]},
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
    ]


def test_content_without_text_is_empty_or_null_for_the_assistant():
    turns = ChatTurns()
    turns.user([])
    turns.tool("c", [])
    turns.assistant([])
    assert [m["content"] for m in turns.messages()] == ["", "", None]


def test_json_of_arguments_is_in_characters():
    assert compact_json({"q": "thé"}) == '{"q": "thé"}'
