import pytest

from medusa_dist.api.convert import failure
from medusa_dist.api.messages.from_chat import message_of
from medusa_dist.api.messages.stream import MessageEvents
from medusa_dist.errors import OverloadedError
from tests.support import anthropic_shapes
from tests.support.chat_answers import CALLS, chunk, events_of, streamed, whole


def stream(chunks):
    """The events, in the recorded shapes."""
    events = events_of(MessageEvents(), chunks)
    for event in events:
        anthropic_shapes.Event.validate_python(event)
    return events


def test_the_events_of_a_text_come_in_anthropics_order():
    events = stream(streamed(content=["Hel", "lo"]))
    assert [event["type"] for event in events] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert events[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert events[2]["delta"] == {"type": "text_delta", "text": "Hel"}
    assert events[5]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_the_start_has_the_input_tokens_and_the_end_all():
    events = stream(streamed(content=["Hel", "lo"]))
    counts = {"input_tokens": 4, "cache_read_input_tokens": 16, "cache_creation_input_tokens": 0}
    assert events[0]["message"]["usage"] == {**counts, "output_tokens": 1}
    assert events[-2]["usage"] == {**counts, "output_tokens": 9}
    assert events[0]["message"]["stop_reason"] is None and events[0]["message"]["seed"] == 7


def test_a_call_starts_with_its_name_and_streams_its_input_as_json():
    events = stream(streamed(calls=CALLS[:1], finish="tool_calls"))
    id, name, arguments = CALLS[0]
    assert events[1]["content_block"] == {"type": "tool_use", "id": id, "name": name, "input": {}}
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"input_json_delta"} and len(deltas) == 2
    assert "".join(delta["partial_json"] for delta in deltas) == arguments


def test_a_thinking_block_ends_with_a_signature():
    events = stream(streamed(reasoning=["h", "m"], content=["x"]))
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 0]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "h"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "signature_delta", "signature": "unsigned"},
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"content": ["Hel", "lo"]},
        {"content": ["x"], "reasoning": ["h", "m"]},
        {"content": ["I ", "look"], "reasoning": ["hm"], "calls": CALLS, "finish": "tool_calls"},
        {"calls": CALLS, "finish": "tool_calls"},
        {"content": ["Hel"], "finish": "length"},
        {"content": ["Hel"], "stop_reason": "lo"},
        {"reasoning": ["hm"]},
        {},
    ],
    ids=["text", "reasoned", "all", "calls", "cut", "stopped", "reasoning", "nothing"],
)
def test_the_events_make_the_message_that_is_not_streamed(answer):
    joined = {name: "".join(answer[name]) for name in ("content", "reasoning") if name in answer}
    expected = message_of(whole(**answer | joined))
    del expected["metrics"]
    assert anthropic_shapes.accumulate(stream(streamed(**answer))) == expected


def test_text_after_a_call_is_a_block_of_its_own():
    chunks = streamed(content=["a"], calls=CALLS[:1], finish="tool_calls")
    message = anthropic_shapes.accumulate(stream([*chunks[:-2], chunk({"content": "b"}), *chunks[-2:]]))
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "text"]


def test_an_error_is_an_event_of_anthropics_shape():
    (event,) = MessageEvents().error(failure(OverloadedError("the queue is full"), "req-1"))
    error = {"type": "rate_limit_error", "message": "the queue is full"}
    assert event == {"type": "error", "error": error, "request_id": "req-1"}
    anthropic_shapes.Event.validate_python(event)
