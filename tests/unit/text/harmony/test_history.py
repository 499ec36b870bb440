"""Reasoning before a call goes where gpt-oss's template reads it; other turns stay as they are."""

from medusa_dist.text.harmony.history import reasoning_in_channels

CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}]


def test_reasoning_before_a_call_is_thinking_and_takes_the_preamble_along():
    turns = [
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": CALLS},
        {"role": "assistant", "content": "I look", "reasoning_content": "hm", "tool_calls": CALLS},
    ]
    reasoning_in_channels(turns)
    assert turns == [
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": CALLS},
        {"role": "assistant", "content": "", "thinking": "hm\n\nI look", "tool_calls": CALLS},
    ]


def test_other_turns_stay_as_they_are():
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "assistant", "content": "I look", "tool_calls": CALLS},
    ]
    before = [dict(turn) for turn in turns]
    reasoning_in_channels(turns)
    assert turns == before
