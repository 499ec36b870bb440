import pytest
from openai.types.responses import Response

from medusa_dist.api.responses.from_chat import response_of
from medusa_dist.api.responses.schema import ResponsesRequest
from tests.support.chat_answers import CALLS, IDENT, USAGE, logprob, whole

SCHEMA = {"type": "object", "properties": {}}
PLAIN = {"model": "org/tiny", "input": "Hi"}
FULL = {
    **PLAIN,
    "instructions": "be short",
    "max_output_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "tools": [{"type": "function", "name": "find", "parameters": SCHEMA}],
    "tool_choice": {"type": "function", "name": "find"},
    "parallel_tool_calls": False,
    "metadata": {"a": "b"},
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "medium"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "service_tier": "flex",
    "max_tool_calls": 3,
}


def respond(fields=PLAIN, **answer):
    """The response, valid by the client's types."""
    made = response_of(ResponsesRequest.model_validate(fields), whole(**answer))
    Response.model_validate(made, strict=True)
    return made


def test_a_text_is_one_message():
    made = respond(content="Hello")
    assert (made["id"], made["status"], made["incomplete_details"]) == (f"resp_{IDENT}", "completed", None)
    text = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    assert made["output"] == [
        {"id": f"msg_{IDENT}_0", "type": "message", "role": "assistant", "content": [text], "status": "completed"}
    ]
    assert made["usage"] == {
        "input_tokens": USAGE["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": USAGE["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": USAGE["total_tokens"],
    }
    assert (made["seed"], made["acceptance"], made["system_fingerprint"]) == (7, "exact", "fp-noise1")
    assert Response.model_validate(made).output_text == "Hello"


def test_reasoning_text_and_calls_are_items_in_this_order():
    made = respond(content="I look", reasoning="hm", calls=CALLS, finish="tool_calls")
    assert [item["type"] for item in made["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["id"] for item in made["output"]] == [
        f"{kind}_{IDENT}_{index}" for index, kind in enumerate(("rs", "msg", "fc", "fc"))
    ]
    assert made["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in made["output"][2:]]
    assert calls == CALLS and made["status"] == "completed"


def test_calls_alone_have_no_message():
    assert [item["type"] for item in respond(calls=CALLS, finish="tool_calls")["output"]] == ["function_call"] * 2


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        ({"content": "Hel"}, "message"),
        ({"reasoning": "hm"}, "reasoning"),
        ({"content": "I look", "calls": [("c", "find", '{"q')]}, "function_call"),
    ],
)
def test_a_cut_answer_is_incomplete_and_so_is_its_last_item(answer, last):
    made = respond(**answer, finish="length")
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (made["output"][-1]["type"], made["output"][-1]["status"]) == (last, "incomplete")
    assert all(item["status"] == "completed" for item in made["output"][:-1])


def test_an_answer_without_text_has_an_empty_message():
    for answer in ({"content": ""}, {"content": None, "reasoning": "hm"}):
        assert respond(**answer)["output"][-1]["content"][0]["text"] == ""


def test_the_request_is_returned_in_the_response():
    made = respond(FULL, content="x", logprobs=[logprob("x")])
    for name in set(FULL) - {"model", "input", "tools", "include"}:
        assert made[name] == FULL[name], name
    assert made["tools"] == [{"type": "function", "name": "find", "parameters": SCHEMA, "strict": None}]
    assert made["output"][0]["content"][0]["logprobs"] == [logprob("x")]


def test_what_was_left_out_has_openais_defaults():
    made = respond(content="x")
    expected = {"tool_choice": "auto", "tools": [], "text": {"format": {"type": "text"}}, "parallel_tool_calls": True}
    expected |= {"metadata": {}, "truncation": "disabled", "store": False, "background": False, "temperature": None}
    assert {name: made[name] for name in expected} == expected


def test_reasoning_tokens_are_counted_where_chat_counts_them():
    usage = {"completion_tokens_details": {"reasoning_tokens": 4}}
    assert respond(content="x", usage=usage)["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
