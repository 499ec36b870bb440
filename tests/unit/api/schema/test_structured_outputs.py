"""response_format and structured_outputs: what they ask for, and how a wrong one is answered."""

import json

import pytest

from medusa_dist.errors import EngineError, RequestError
from medusa_dist.grammar import MAX_CHARS, Grammar
from tests.support.fake_service import FakeService, chat, client_of, completion

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é"]}}}
FORM, OUTPUTS = "response_format", "structured_outputs"


async def ask(route, body, service=None):
    service = service or FakeService("ok")
    async with client_of(service) as client:
        headers = {"content-type": "application/json"}
        return await client.post(route, content=json.dumps(body), headers=headers), service


FORMATS = {
    "text": ({"type": "text"}, None),
    "json_object": ({"type": "json_object"}, Grammar.json()),
    "json_schema": (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        Grammar.json_schema(SCHEMA),
    ),
    "json_schema not strict": (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": False, "description": "d"}},
        Grammar.json_schema(SCHEMA),
    ),
}


@pytest.mark.parametrize("case", FORMATS)
async def test_response_format_becomes_the_grammar_of_every_choice(case):
    value, grammar = FORMATS[case]
    reply, service = await ask(CHAT, chat(response_format=value, n=2))
    assert reply.status_code == 200, reply.text
    assert [r.params.grammar for r in service.requests] == [grammar] * 2
    if grammar is not None:
        assert service.requests[0].params.grammar.param == FORM and service.requests[0].params.needs_full_logits


KINDS = {
    "json": (SCHEMA, Grammar.json_schema(SCHEMA)),
    "regex": ("[ab]+", Grammar.regex("[ab]+")),
    "choice": (["é", "b"], Grammar.choice(["é", "b"])),
    "grammar": ('root ::= "a"', Grammar.ebnf('root ::= "a"')),
    "json_object": (True, Grammar.json()),
}


@pytest.mark.parametrize(("route", "make"), [(CHAT, chat), (COMPLETIONS, completion)])
@pytest.mark.parametrize("kind", KINDS)
async def test_structured_outputs_becomes_the_grammar_of_the_request(kind, route, make):
    value, grammar = KINDS[kind]
    reply, service = await ask(route, make(structured_outputs={kind: value}))
    assert reply.status_code == 200, reply.text
    asked = service.requests[0].params.grammar
    assert asked == grammar and asked.param == OUTPUTS


async def test_json_schema_given_as_text_keeps_its_property_order():
    reply, service = await ask(CHAT, chat(structured_outputs={"json": '{"properties": {"b": {}, "a": {}}}'}))
    assert reply.status_code == 200
    text = service.requests[0].params.grammar.text
    assert text.index('"b"') < text.index('"a"')


BAD = {
    "type missing": ({FORM: {}}, FORM, "response_format.type is required"),
    "unknown type": ({FORM: {"type": "xml"}}, FORM, "'text', 'json_object' or 'json_schema'"),
    "json_schema missing": ({FORM: {"type": "json_schema"}}, FORM, "require each other"),
    "json_schema with type text": (
        {FORM: {"type": "text", "json_schema": {"name": "x", "schema": {}}}},
        FORM,
        "require each other",
    ),
    "json_schema without schema": (
        {FORM: {"type": "json_schema", "json_schema": {"name": "x"}}},
        FORM,
        "schema is required",
    ),
    "unknown key in json_schema": (
        {FORM: {"type": "json_schema", "json_schema": {"schem": {}}}},
        "response_format.json_schema.schem",
        "did you mean response_format.json_schema.schema?",
    ),
    "no constraint": ({OUTPUTS: {}}, OUTPUTS, "exactly one of json, regex, choice, grammar, json_object"),
    "json_object false": ({OUTPUTS: {"json_object": False}}, OUTPUTS, "exactly one of"),
    "two constraints": ({OUTPUTS: {"regex": "a", "choice": ["b"]}}, OUTPUTS, "exactly one of"),
    "unsupported constraint": (
        {OUTPUTS: {"structural_tag": "x"}},
        "structured_outputs.structural_tag",
        "known fields: json, regex",
    ),
    "response_format too": ({FORM: {"type": "json_object"}, OUTPUTS: {"regex": "a"}}, OUTPUTS, "remove one of them"),
    "empty list of choices": ({OUTPUTS: {"choice": []}}, OUTPUTS, "a list of non-empty texts"),
    "two former names": ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "guided_json and guided_regex both"),
    "a former name beside": ({FORM: {"type": "json_object"}, "guided_choice": ["a"]}, "guided_choice", "remove one"),
    "a former name with nothing": ({"guided_choice": []}, "guided_choice", "guided_choice: choices must be a list"),
    "a former name with beams": ({"guided_regex": "a", "beam_width": 2}, "guided_regex", "cannot be used with beam"),
    "an empty choice": ({OUTPUTS: {"choice": ["a", ""]}}, OUTPUTS, "a list of non-empty texts"),
    "too many choices": ({OUTPUTS: {"choice": [str(i) for i in range(3000)]}}, OUTPUTS, "the maximum is 2000"),
    "an empty regex": ({OUTPUTS: {"regex": ""}}, OUTPUTS, "it is empty"),
    "a long regex": ({OUTPUTS: {"regex": "a" * (MAX_CHARS + 1)}}, OUTPUTS, "the maximum is 65536"),
    "a schema that is no JSON": ({OUTPUTS: {"json": "{"}}, OUTPUTS, "the schema is not valid JSON"),
    "a schema that is a list": ({OUTPUTS: {"json": "[]"}}, OUTPUTS, "must be an object"),
    "lone surrogate": ({OUTPUTS: {"choice": ["\ud800"]}}, OUTPUTS, "surrogate"),
}


@pytest.mark.parametrize("case", BAD)
async def test_invalid_output_constraint_is_400_naming_the_field(case):
    fields, param, text = BAD[case]
    reply, service = await ask(CHAT, chat(**fields))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert text in error["message"] and not service.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_grammar_refused_by_the_engine_is_400_naming_the_field(stream):
    """The engine's own refusal, as it comes back from there."""
    service = FakeService("ok")
    service.before = Grammar.regex("(a", OUTPUTS).error("unclosed group")
    reply, _ = await ask(CHAT, chat(structured_outputs={"regex": "(a"}, stream=stream), service)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"] == {
        "message": "structured_outputs: this regex cannot be used: unclosed group",
        "type": "invalid_request_error",
        "param": OUTPUTS,
        "code": None,
    }


def test_grammar_error_is_a_request_error_not_an_engine_error():
    assert isinstance(Grammar.json().error("x"), RequestError)
    assert not isinstance(Grammar.json().error("x"), EngineError)
