"""vLLM's form of a grammar; what a grammar does is tested in tests/end_to_end/test_structured_output.py."""

import pytest

from medusa_dist import Grammar, SamplingParams, StructuredOutputsParams
from medusa_dist.errors import RequestError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"json": SCHEMA}, Grammar.json_schema(SCHEMA)),
        ({"json": '{"type": "integer"}'}, Grammar.json_schema({"type": "integer"})),
        ({"regex": "[ab]+"}, Grammar.regex("[ab]+")),
        ({"choice": ["yes", "no"]}, Grammar.choice(["yes", "no"])),
        ({"grammar": 'root ::= "a"'}, Grammar.ebnf('root ::= "a"')),
        ({"json_object": True}, Grammar.json()),
    ],
)
def test_each_kind_of_structured_outputs_is_its_grammar(given: dict[str, object], expected: Grammar) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**given))
    assert params.grammar == expected and params == SamplingParams(grammar=expected)


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({}, "structured_outputs", "exactly one of json, regex, choice, grammar, json_object"),
        ({"json_object": False}, "structured_outputs", "exactly one of"),
        ({"regex": "a", "choice": ["b"]}, "structured_outputs", "exactly one of"),
        ({"json": "{"}, "structured_outputs", "not valid JSON"),
        ({"choice": []}, "structured_outputs", "non-empty texts"),
        ({"regex": "a", "whitespace_pattern": " "}, "structured_outputs.whitespace_pattern", "is not supported"),
        ({"structural_tag": "x"}, "structured_outputs.structural_tag", "is not supported"),
    ],
)
def test_invalid_structured_outputs_are_refused_by_name(given: dict[str, object], param: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        StructuredOutputsParams(**given)
    assert caught.value.param == param
