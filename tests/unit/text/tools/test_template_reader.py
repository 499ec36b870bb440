"""Answers read by a response template, in the shapes of transformers' documentation."""

import json

import pytest

from medusa_dist.text.tools.parts import Part
from medusa_dist.text.tools.template_reader import response_template
from tests.support.tiny_tokenizers import HAS_RESPONSE_TEMPLATES, byte_tokenizer
from tests.support.tool_cases import collected

pytestmark = pytest.mark.skipif(not HAS_RESPONSE_TEMPLATES, reason="transformers before 5.13")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
JSON_CALLS = {
    "start_anchor": "<bot>",
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {"close": "<end>"},
        "thinking": {"open": "<mull>", "close": "</mull>"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "{content.name}", "arguments": "{content.arguments}"},
            },
        },
    },
}
XML_CALLS = {
    "start_anchor": "<bot>",
    "fields": {
        "content": {},
        "tool_calls": {
            "open_pattern": r"<fn=(?P<name>\w+)>",
            "close": "</fn>",
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<arg=(?P<key>\w+)>(?P<value>.*?)</arg>"},
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}
CALL = '<call>{"name": "get_weather", "arguments": {"city": "Rom", "days": 2}}</call>'
XML = "<fn=get_weather><arg=city>Rom</arg><arg=days>2</arg></fn>"
WEATHER = ("get_weather", {"city": "Rom", "days": 2})


def template(spec):
    tokenizer = byte_tokenizer()
    tokenizer.response_template = spec
    return response_template(tokenizer)


def read(spec, pieces, prompt="<user>hi<bot>"):
    found = template(spec)
    assert found is not None
    reader = found.reader(prompt, TOOLS)
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        parts += reader.feed(piece, is_last=i == len(pieces) - 1)
    reasoning, content, calls = collected(parts)
    return reasoning, content, [(name, json.loads(text)) for name, text in calls]


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        (JSON_CALLS, "  yes, \n it is\n", ("", "yes, \n it is", [])),
        (JSON_CALLS, "<mull>\nhm, hm\n</mull>\n\nyes<end>", ("hm, hm", "yes", [])),
        (JSON_CALLS, f"<mull>hm</mull>{CALL}\n{CALL}<end>", ("hm", "", [WEATHER, WEATHER])),
        (JSON_CALLS, f"I look. {CALL}", ("", "I look.", [WEATHER])),
        (JSON_CALLS, "a < b <cal", ("", "a < b <cal", [])),
        (JSON_CALLS, f'{CALL}<call>{{"name": "get_w', ("", '{"name": "get_w', [WEATHER])),
        (JSON_CALLS, "<call>{'x'}</call> more", ("", "{'x'} more", [])),
        (JSON_CALLS, "<call>[1]</call>!", ("", "[1]!", [])),
        (XML_CALLS, f"So:{XML}{XML}", ("", "So:", [WEATHER, WEATHER])),
    ],
)
def test_answer_is_the_same_in_any_pieces(spec, text, expected):
    assert read(spec, [text]) == expected
    assert read(spec, list(text)) == expected
    for cut in range(1, len(text)):
        assert read(spec, [text[:cut], text[cut:]]) == expected


def test_what_the_prompt_opened_goes_on_in_the_answer():
    assert read(JSON_CALLS, ["h", "m</mull>yes"], "<user>hi<bot><mull>\n") == ("hm", "yes", [])


def test_text_streams_and_calls_come_when_they_are_complete():
    found = template(JSON_CALLS)
    assert found is not None
    reader = found.reader("<bot>", TOOLS)
    assert collected(reader.feed("one tw"))[1] == "one tw"
    assert reader.feed(CALL[:-1]) == []
    assert len(reader.feed(CALL[-1])) == 2


def test_template_that_cannot_be_read_is_none():
    assert template(None) is None
    assert template({"fields": {}}) is None
    assert template({**JSON_CALLS, "version": 99}) is None


def test_template_says_what_it_has():
    with_calls, without = template(JSON_CALLS), template({"start_anchor": "<bot>", "fields": {"content": {}}})
    assert with_calls is not None and without is not None
    assert (with_calls.has_calls, with_calls.has_reasoning) == (True, True)
    assert (without.has_calls, without.has_reasoning) == (False, False)
    assert "</mull>" in with_calls.text
