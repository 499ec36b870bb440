"""enforceable(): schemas as generators write them, with the same valid documents, or refused by name."""

import datetime
import decimal
import enum
import json
import uuid
from typing import Annotated, Any, Literal

import llguidance.hf
import pytest
from llguidance import LLMatcher
from pydantic import BaseModel, Field

from medusa_dist.errors import RequestError
from medusa_dist.json_schema import enforceable
from tests.support.tiny_tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCABULARY = llguidance.hf.from_tokenizer(TOKENIZER)


def is_valid(schema: dict[str, Any], document: Any) -> bool:
    """Whether a grammar made of the rewritten schema accepts a document."""
    text = json.dumps(enforceable(schema, "tools"))
    matcher = LLMatcher(VOCABULARY, LLMatcher.grammar_from_json_schema(text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = TOKENIZER(json.dumps(document), add_special_tokens=False)["input_ids"]
    num_read = matcher.validate_tokens(ids)
    return num_read == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"  # has a default, so pydantic does not list it as required
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Colour(enum.StrEnum):
    RED = "red"


class Order(BaseModel):
    """A model with what pydantic's users write."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    price: decimal.Decimal
    day: datetime.date = datetime.date(2020, 1, 1)
    key: uuid.UUID
    note: str | None = Field(default=None, title="A note", examples=["x"])
    counts: dict[str, int] = {}
    by_colour: dict[Colour, int] = {}
    pair: tuple[int, str] = (0, "")
    part: "Order | None" = None


ORDER: dict[str, Any] = {
    "pet": {"kind": "cat", "lives": 9},
    "price": "1.50",
    "day": "2020-01-01",
    "key": "0d8e9ad2-8f42-4a3c-9f8b-2f5a1f0f0a11",
    "note": None,
    "counts": {"a": 1},
    "by_colour": {"red": 2},
    "pair": [1, "x"],
    "part": None,
}


def test_pydantic_model_with_union_decimal_date_uuid_and_records_accepts_its_documents() -> None:
    schema = Order.model_json_schema()
    Order.model_validate(ORDER)
    assert is_valid(schema, ORDER)
    assert is_valid(schema, ORDER | {"pet": {"kind": "dog", "name": "Rex"}, "price": 2})
    assert is_valid(schema, ORDER | {"part": ORDER})


@pytest.mark.parametrize(
    "change",
    [
        {"pet": {"kind": "cat", "name": "Tom"}},
        {"pet": {"lives": 9}},  # no discriminator
        {"day": "2020-13-01"},
        {"key": "no"},
        {"counts": {"a": "b"}},
        {"by_colour": {"blue": 1}},
        {"pair": ["x", 1]},
    ],
    ids=json.dumps,
)
def test_documents_that_pydantic_rejects_are_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Order.model_validate(ORDER | change)
    assert not is_valid(Order.model_json_schema(), ORDER | change)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "nullable": True}, [None, "a"], [1]),
        ({"enum": ["a"], "nullable": True}, [None, "a"], ["b"]),
        ({"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "minItems": 2}, [[1, "a"]], [["a", 1]]),
        (
            {"type": "array", "items": [{"type": "integer"}], "additionalItems": False},
            [[1]],
            [[1, 2]],
        ),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, [2], [1]),
        ({"type": "integer", "maximum": 3, "exclusiveMaximum": False}, [3], [4]),
        (
            {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
            [{"k": 1}],
            [{"k": "v"}],
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "integer"}},
            [{"ab": 1}],
            [{"c": 1}],
        ),
        ({"type": "object", "propertyNames": {"enum": ["a"]}}, [{"a": 1}], [{"c": 1}]),
        ({"type": "object", "propertyNames": False}, [{}], [{"a": 1}]),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, [[1, 1]], [["a"]]),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 1}, [[1]], [[1, 1]]),
        ({"type": "string", "format": "binary"}, ["anything"], [1]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None]),
        (  # pydantic's Decimal, up to 2.12
            {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
            ["1", "-1.50", "+.5", "007."],
            ["", "+", ".", "-.", "1.2.3", "a"],
        ),
        (
            {"type": "object", "properties": {"title": {"type": "string"}, "default": {"type": "integer"}}},
            [{"title": "x", "default": 1}],
            [{"title": 1}],
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_rewritten_keyword_keeps_its_meaning(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert all(is_valid(schema, document) for document in good)
    assert not any(is_valid(schema, document) for document in bad)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}},
            "tools: properties.tags: uniqueItems: it cannot be enforced",
        ),
        ({"properties": {"a": {"items": {"not": {}}}}}, "tools: properties.a.items: not: it cannot be enforced"),
        ({"$defs": {"A": {"if": {}}}}, "tools: $defs.A: if: it cannot be enforced; use anyOf"),
        ({"properties": {"p": {"type": "string", "pattern": "(?=a)b"}}}, "tools: properties.p: pattern: look-ahead"),
        (
            {"anyOf": [{"oneOf": [{"type": "integer"}, {"type": "number"}]}]},
            "tools: anyOf[0]: oneOf: branches 0 and 1 can match the same value",
        ),
        ({"properties": {"a": 1}}, "tools: properties.a: a schema must be an object"),
        ({"anyOf": {}}, "tools: anyOf: its value must be a list"),
        ({"properties": []}, "tools: properties: its value must be an object"),
        ({"properties": {"a": {"type": "str"}}}, "tools: properties.a: type: its value must be one of object, array"),
        ({"type": ["string", "any"]}, "tools: type: its value must be one of"),
        ({"required": "a"}, "tools: required: its value must be a list of names"),
        ({"properties": {"a": {"enum": "xy"}}}, "tools: properties.a: enum: its value must be a list of at least one"),
        ({"enum": []}, "tools: enum: its value must be a list of at least one"),
        ({"items": {"minLength": -1}}, "tools: items: minLength: its value must be a whole number from 0"),
        ({"items": {"maxItems": 1e999}}, "tools: items: maxItems: its value must be a whole number from 0, not inf"),
        ({"maximum": "5"}, "tools: maximum: its value must be a number, not '5'"),
        ({"pattern": 5}, "tools: pattern: its value must be a text"),
        ({"$ref": "#/$defs/X", "$defs": {"Y": {}}}, "tools: $ref: there is nothing at '#/$defs/X' in the schema"),
        ({"$ref": "https://example.com/s.json"}, "tools: $ref: there is nothing at 'https://example.com/s.json'"),
        ({"type": "object", "propertyNames": {"minLength": 2}}, "tools: propertyNames: only pattern, enum or const"),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value),
)
def test_keyword_that_cannot_be_enforced_is_refused_by_property_and_name(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + message.replace("$", r"\$").replace("[", r"\[")) as caught:
        enforceable(schema, "tools")
    assert caught.value.param == "tools"


def test_one_of_with_values_equal_as_json_numbers_is_refused() -> None:
    with pytest.raises(RequestError, match="branches 0 and 1"):
        enforceable({"oneOf": [{"const": 1}, {"const": 1.0}]}, "tools")


def test_references_to_the_root_and_into_lists_are_kept() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/anyOf/0"}}, "anyOf": [{}]}
    assert enforceable(schema, "tools") == schema
