import json

import pytest

from medusa_dist.api.messages.from_chat import message_of
from tests.support import anthropic_shapes
from tests.support.chat_answers import CALLS, IDENT, whole


def answer(**chat):
    """The message, in the recorded shape."""
    message = message_of(whole(**chat))
    anthropic_shapes.Message.model_validate(message)
    return message


def test_a_text_is_one_block():
    message = answer(content="Hello")
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert (message["id"], message["role"], message["model"]) == (f"msg_{IDENT}", "assistant", "org/tiny")
    assert (message["stop_reason"], message["stop_sequence"], message["seed"]) == ("end_turn", None, 7)


def test_input_tokens_are_those_that_were_not_cached():
    assert answer(content="Hello")["usage"] == {
        "input_tokens": 4,
        "cache_read_input_tokens": 16,
        "cache_creation_input_tokens": 0,
        "output_tokens": 9,
    }


def test_thinking_text_and_calls_are_blocks_in_this_order():
    message = answer(content="I look", reasoning="hm", calls=CALLS, finish="tool_calls")
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
        {"type": "text", "text": "I look"},
        *({"type": "tool_use", "id": id, "name": name, "input": json.loads(text)} for id, name, text in CALLS),
    ]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("chat", "reason", "sequence"),
    [
        ({"finish": "stop"}, "end_turn", None),
        ({"finish": "stop", "stop_reason": "###"}, "stop_sequence", "###"),
        ({"finish": "stop", "stop_reason": 17}, "end_turn", None),
        ({"finish": "length"}, "max_tokens", None),
        ({"finish": "tool_calls"}, "tool_use", None),
    ],
)
def test_stop_reasons_are_anthropics(chat, reason, sequence):
    message = answer(content="x", **chat)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("arguments", "values"),
    [('{"a": 1, "b": "th', {"a": 1, "b": "th"}), ('{"a": [1, 2', {"a": [1, 2]}), ("", {}), ("{", {}), ("nonsense", {})],
)
def test_a_cut_call_has_the_arguments_that_are_there(arguments, values):
    message = answer(calls=[("c", "find", arguments)], finish="length")
    assert message["content"][0]["input"] == values


def test_an_answer_without_text_has_no_blocks():
    assert answer(content="")["content"] == []
