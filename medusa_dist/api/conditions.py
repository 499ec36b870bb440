"""Conditions between the fields of a body, as JSON Schema: what /openapi.json says beside each field's own type.

Owns their form. Not here: the checks themselves, which stand in the models (schema/, messages/, responses/).
Each is a schema for allOf, written with anyOf, which generators of code and of test data understand better than `if`.
"""

from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]
Extra = Callable[[Schema], None]  # for json_schema_extra

NULL: Schema = {"type": "null"}
SET: Schema = {"not": {"type": "null"}}
TRUE: Schema = {"const": True}


def absent(*names: str) -> Schema:
    """None of the fields is there, or each is null."""
    return {"properties": dict.fromkeys(names, NULL)}


def has(**fields: Schema) -> Schema:
    """The fields are there, with these values."""
    return {"properties": fields, "required": list(fields)}


def needs(name: str, **others: Schema) -> Schema:
    """A field that is not null needs others, with these values."""
    return {"anyOf": [absent(name), has(**others)]}


def exactly_one(*names: str) -> Schema:
    """One of the fields is not null, and the others are."""
    return {"oneOf": [has(**{name: SET}) for name in names]}


# Typical acceptance's own fields.
TYPICAL: Schema = {"anyOf": [has(acceptance={"const": "typical"}), absent("typical_epsilon", "typical_delta")]}


def conditions(*found: Schema, after: Extra | None = None) -> Extra:
    """The extra of a model whose schema has these conditions. after: another extra, which comes first."""

    def fill(schema: Schema) -> None:
        if after is not None:
            after(schema)
        schema.setdefault("allOf", []).extend(found)

    return fill


def names_match(pattern: str) -> Mapping[str, Any]:
    """The extra of a field that is an object whose names fit a pattern."""
    return {"propertyNames": {"pattern": pattern}}
