import openai
import pytest
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent, response_content_part_added_event
from pydantic import TypeAdapter

from medusa_dist.api.convert import failure
from medusa_dist.api.responses.from_chat import response_of
from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.responses.stream import ResponseEvents
from medusa_dist.errors import EngineError, OverloadedError
from tests.support.chat_answers import CALLS, IDENT, chunk, events_of, logprob, streamed, whole

REQUEST = ResponsesRequest.model_validate({"model": "org/tiny", "input": "Hi"})
EVENT = TypeAdapter(ResponseStreamEvent)


def stream(chunks):
    """The events, each valid by the client's types, numbered, and accepted by its accumulator."""
    events = events_of(ResponseEvents(REQUEST), chunks)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    left_out = getattr(openai, "omit", openai.NOT_GIVEN)  # the name in newer clients
    state = ResponseStreamState(input_tools=left_out, text_format=left_out)
    for event in events:
        state.handle_event(parsed(event))
    return events


def parsed(event):
    """The event as the client's type; without validation if the client is older than reasoning in parts."""
    if hasattr(response_content_part_added_event, "PartReasoningText"):
        return EVENT.validate_python(event, strict=True)
    return construct_type(type_=ResponseStreamEvent, value=event)


def kinds(events):
    return [event["type"].removeprefix("response.") for event in events]


def without_metrics(response):
    return {key: value for key, value in response.items() if key != "metrics"}


def test_the_events_of_a_text_come_in_openais_order():
    events = stream(streamed(content=["Hel", "lo"]))
    assert kinds(events) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["Hel", "lo"]
    assert events[6]["text"] == events[7]["part"]["text"] == events[8]["item"]["content"][0]["text"] == "Hello"
    assert {event["item_id"] for event in events if "item_id" in event} == {f"msg_{IDENT}_0"}
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["usage"] is None and events[0]["response"]["seed"] == 7
    assert events[2]["item"] == {
        **{"id": f"msg_{IDENT}_0", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    }


def test_the_events_of_a_call_have_its_arguments_in_pieces():
    events = stream(streamed(calls=CALLS[:1], finish="tool_calls"))
    assert kinds(events)[2:] == [
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    id, name, arguments = CALLS[0]
    added, done = events[2]["item"], events[6]["item"]
    assert (added["call_id"], added["name"], added["arguments"], added["status"]) == (id, name, "", "in_progress")
    assert "".join(event["delta"] for event in events[3:5]) == events[5]["arguments"] == done["arguments"] == arguments


def test_the_events_of_reasoning_come_before_those_of_the_text():
    events = stream(streamed(reasoning=["h", "m"], content=["x"]))
    assert kinds(events)[2:9] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
    ]
    assert events[6]["text"] == "hm" and events[3]["part"] == {"type": "reasoning_text", "text": ""}
    assert [event["output_index"] for event in events if "output_index" in event] == [0] * 7 + [1] * 6


@pytest.mark.parametrize(
    "answer",
    [
        {"content": ["Hel", "lo"]},
        {"content": ["x"], "reasoning": ["h", "m"]},
        {"content": ["I ", "look"], "reasoning": ["hm"], "calls": CALLS, "finish": "tool_calls"},
        {"calls": CALLS, "finish": "tool_calls"},
        {"content": ["Hel"], "finish": "length"},
        {"reasoning": ["hm"], "finish": "length"},
        {"reasoning": ["hm"]},
        {"content": ["I"], "calls": [("c", "find", '{"q')], "finish": "length"},
        {},
    ],
    ids=["text", "reasoned", "all", "calls", "cut", "cut-reasoning", "reasoning", "cut-call", "nothing"],
)
def test_the_last_event_has_the_response_that_is_not_streamed(answer):
    joined = {name: "".join(answer[name]) for name in ("content", "reasoning") if name in answer}
    expected = response_of(REQUEST, whole(**answer | joined))
    last = stream(streamed(**answer))[-1]
    assert last["type"] == f"response.{expected['status']}"
    assert last["response"] == without_metrics(expected)


def test_each_item_is_done_as_it_is_in_the_response():
    events = stream(streamed(content=["I"], reasoning=["hm"], calls=CALLS, finish="tool_calls"))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


def test_text_after_a_call_is_a_message_of_its_own():
    chunks = streamed(content=["a"], calls=CALLS[:1], finish="tool_calls")
    events = stream([*chunks[:-2], chunk({"content": "b"}), *chunks[-2:]])
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    assert len({item["id"] for item in output}) == 3


def test_logprobs_come_with_the_text_and_all_of_them_at_its_end():
    one, two, end = logprob("a"), logprob("b"), logprob("<eos>")
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({}, logprobs=[one]),  # a token whose text is not complete
        chunk({"content": "ab"}, logprobs=[two]),
        chunk({}, "stop", logprobs=[end]),
        chunk(),
    ]
    events = stream(chunks)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"] for event in deltas] == [[one, two]]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [one, two, end]


@pytest.mark.parametrize(
    ("error", "code"), [(EngineError("gone"), "server_error"), (OverloadedError("full"), "rate_limit_exceeded")]
)
def test_an_error_after_the_start_is_a_failed_response(error, code):
    events = ResponseEvents(REQUEST)
    begun = [event for one in streamed(content=["x"], calls=CALLS)[:4] for event in events.chunk(one)]
    (failed,) = events.error(failure(error, "req-1"))
    EVENT.validate_python(failed, strict=True)
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", len(begun))
    assert failed["response"]["error"] == {"code": code, "message": error.message}
    assert failed["response"]["status"] == "failed"
    assert [item["type"] for item in failed["response"]["output"]] == ["message"], "what was done by then"


def test_an_error_before_the_start_is_an_error_event():
    (event,) = ResponseEvents(REQUEST).error(failure(EngineError("gone"), "req-1"))
    EVENT.validate_python(event, strict=True)
    assert event == {"type": "error", "sequence_number": 0, "code": "server_error", "message": "gone", "param": None}
