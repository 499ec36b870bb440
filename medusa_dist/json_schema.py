"""JSON schemas as pydantic, zod and OpenAPI write them, in the keywords that a grammar can enforce.

Owns the rewriting of a schema before it is compiled, and the errors that name a property and a keyword. Not here:
compiling (engine/state/matcher.py). Imports only errors.
Rule: a keyword that constrains values is enforced, rewritten into keywords that mean the same, or refused by name. A
keyword that only describes (title, default, an unknown format) is dropped. Source: JSON Schema 2020-12, with the forms
of draft 4 and 7 that generators still write.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from medusa_dist.errors import RequestError

_DESCRIBES = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"),
        *("contentMediaType", "contentEncoding", "contentSchema", "xml", "externalDocs"),
    }
)
_REFUSED = {
    "not": "say what is allowed instead",
    "if": "use anyOf",
    "then": "use anyOf",
    "else": "use anyOf",
    "contains": "constrain all items",
    "minContains": "constrain all items",
    "maxContains": "constrain all items",
    "dependentRequired": "use anyOf",
    "dependentSchemas": "use anyOf",
    "dependencies": "use anyOf",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
_FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)  # what llguidance enforces; JSON Schema calls all others annotations
# Patterns with look-ahead that generators write, and the same sets of texts without.
_WITHOUT_LOOK_AHEAD = {
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(\d+\.?\d*|\.\d+)$",  # pydantic: Decimal
}
_LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")
_ONE = ("items", "additionalProperties", "additionalItems")  # keywords with one schema
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")  # with a list of schemas
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # with schemas by name

_ALL_TYPES = ("object", "array", "string", "number", "boolean", "null")

Schema = dict[str, Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_types(value: Any) -> bool:
    kinds = [value] if isinstance(value, str) else value
    return isinstance(kinds, list) and bool(kinds) and all(kind in (*_ALL_TYPES, "integer") for kind in kinds)


_TEXT = (lambda value: isinstance(value, str), "a text")
_NUMBER = (_is_number, "a number")
_BOUND = (lambda value: isinstance(value, int | float), "a number")  # true and false in draft 4
_COUNT = (lambda value: _is_number(value) and value >= 0 and value % 1 == 0, "a whole number from 0")
_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {  # what values a keyword can have, and that in words
    "type": (_are_types, f"one of {', '.join(_ALL_TYPES)}, integer, or a list of them"),
    "required": (lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of names"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list of at least one value"),
    **dict.fromkeys(("pattern", "format", "$ref"), _TEXT),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _BOUND),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
}


def enforceable(schema: Mapping[str, Any], param: str) -> Schema:
    """The schema in keywords that a grammar enforces, with the same valid documents.

    param: the request field, for errors. Raises RequestError that names property and keyword.
    """
    rewritten = _Rewriter(schema, param).rewrite(schema, "")
    assert isinstance(rewritten, dict)
    return rewritten


@dataclass(frozen=True, slots=True)
class _Rewriter:
    """root: the whole schema, for references. Paths lead from it to a schema inside, such as "properties.city"."""

    root: Mapping[str, Any]
    param: str

    def rewrite(self, schema: Any, path: str) -> Schema | bool:
        """One schema and all below it."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._error(path, "", "a schema must be an object, true or false")
        kept = {key: value for key, value in schema.items() if key not in _DESCRIBES}
        for key, instead in _REFUSED.items():
            if key in kept:
                raise self._error(path, key, f"it cannot be enforced; {instead}")
        self._values(kept, path)
        self._unique_items(kept, path)
        self._format(kept)
        self._pattern(kept, path)
        self._property_names(kept, path)
        self._draft_4_bounds(kept)
        self._draft_7_tuples(kept)
        self._one_of(kept, path)
        self._below(kept, path)
        return _nullable(kept)

    def _values(self, schema: Schema, path: str) -> None:
        """Refuse values that keywords cannot have, which would say nothing, or fail far from their place."""
        for key, (fits, wanted) in _VALUES.items():
            if key in schema and not fits(schema[key]):
                raise self._error(path, key, f"its value must be {wanted}, not {repr(schema[key])[:60]}")
        ref = schema.get("$ref")
        if ref is not None and not (ref.startswith("#") and self._target(ref) is not None):
            raise self._error(path, "$ref", f"there is nothing at {ref[:80]!r} in the schema")

    def _below(self, schema: Schema, path: str) -> None:
        for key in _ONE:
            if key in schema:
                schema[key] = self.rewrite(schema[key], _join(path, key))
        for key in _MANY:
            if key in schema:
                if not isinstance(schema[key], list):
                    raise self._error(path, key, "its value must be a list of schemas")
                schema[key] = [self.rewrite(item, f"{_join(path, key)}[{i}]") for i, item in enumerate(schema[key])]
        for key in _NAMED:
            if key in schema:
                if not isinstance(schema[key], Mapping):
                    raise self._error(path, key, "its value must be an object of schemas")
                schema[key] = {
                    name: self.rewrite(item, _join(path, f"{key}.{name}")) for name, item in schema[key].items()
                }

    def _unique_items(self, schema: Schema, path: str) -> None:
        """uniqueItems says something only about lists of two items or more."""
        most = schema.get("maxItems")
        if schema.pop("uniqueItems", False) and not (isinstance(most, int) and most <= 1):
            raise self._error(path, "uniqueItems", "it cannot be enforced; remove it (in pydantic: a list, not a set)")

    def _format(self, schema: Schema) -> None:
        if schema.get("format") not in _FORMATS:
            schema.pop("format", None)

    def _pattern(self, schema: Schema, path: str) -> None:
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and pattern in _WITHOUT_LOOK_AHEAD:
            schema["pattern"] = _WITHOUT_LOOK_AHEAD[pattern]
        elif isinstance(pattern, str) and any(mark in pattern for mark in _LOOK_AROUND):
            raise self._error(path, "pattern", "look-ahead and look-behind cannot be enforced; write it without them")

    def _property_names(self, schema: Schema, path: str) -> None:
        """The names of a record (zod's z.record, pydantic's dict) as properties or patternProperties."""
        names = schema.pop("propertyNames", True)
        if isinstance(names, Mapping):
            resolved = self._resolve(names)
            known = {key: value for key, value in resolved.items() if key not in _DESCRIBES | {"type", "format"}}
            if not known:
                return  # any string, and every name is one
        elif names is True:
            return
        else:
            known = {"enum": []}
        fits = len(known) == 1 and not schema.keys() & {"properties", "patternProperties"}
        values = schema.get("additionalProperties", True)
        if fits and "pattern" in known:
            schema["patternProperties"] = {known["pattern"]: values}
        elif fits and ("enum" in known or "const" in known):
            schema["properties"] = {str(name): values for name in known.get("enum", [known.get("const")])}
        else:
            raise self._error(path, "propertyNames", "only pattern, enum or const can be enforced, without properties")
        schema["additionalProperties"] = False

    def _draft_4_bounds(self, schema: Schema) -> None:
        """exclusiveMinimum: true next to minimum, as draft 4 and OpenAPI 3.0 write it."""
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive) and bound in schema:
                schema[exclusive] = schema.pop(bound)

    def _draft_7_tuples(self, schema: Schema) -> None:
        """A list in `items`."""
        rest = schema.pop("additionalItems", None)
        if isinstance(schema.get("items"), list):
            schema["prefixItems"] = schema.pop("items")
            if rest is not None:
                schema["items"] = rest

    def _one_of(self, schema: Schema, path: str) -> None:
        """oneOf as anyOf, which means the same if no document matches two branches."""
        tag = schema.pop("discriminator", None)
        branches = schema.get("oneOf")
        if not isinstance(branches, list) or "anyOf" in schema:
            return
        name = tag.get("propertyName") if isinstance(tag, Mapping) else None
        found = [self._resolve(branch) for branch in branches]
        if isinstance(name, str):  # a discriminator is required, whether the branches list it or not
            found = [{**branch, "required": [*branch.get("required", ()), name]} for branch in found]
            branches = [
                branch
                if name in self._resolve(branch).get("required", ())
                else {"allOf": [branch, {"required": [name]}]}
                for branch in branches
            ]
        for (i, one), (j, other) in combinations(enumerate(found), 2):
            if not self._disjoint(one, other):
                raise self._error(
                    path, "oneOf", f"branches {i} and {j} can match the same value; use anyOf, or a required constant"
                )
        schema["anyOf"] = branches
        del schema["oneOf"]

    def _resolve(self, schema: Any) -> Mapping[str, Any]:
        """The schema that a reference leads to; itself if it is none, empty if it leads nowhere."""
        for _ in range(16):  # references to references; a circle ends here
            if not isinstance(schema, Mapping):
                return {}
            ref = schema.get("$ref")
            if not isinstance(ref, str) or not ref.startswith("#"):
                return schema
            schema = self._target(ref)
        return {}

    def _target(self, ref: str) -> Any:
        """What a reference within the schema leads to; None if it leads nowhere."""
        target: Any = self.root
        for part in unquote(ref[1:]).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list):
                target = target[int(name)] if name.isdecimal() and int(name) < len(target) else None
            else:
                target = target.get(name) if isinstance(target, Mapping) else None
        return target

    def _disjoint(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether it is certain that no value matches both schemas."""
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not values & others
        if not _types(one) & _types(other):
            return True
        if not _types(one) == _types(other) == {"object"}:
            return False
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        mine, theirs = one.get("properties", {}), other.get("properties", {})
        return any(
            self._disjoint(self._resolve(mine[name]), self._resolve(theirs[name]))
            for name in shared
            if name in mine and name in theirs
        )

    def _error(self, path: str, keyword: str, reason: str) -> RequestError:
        where = ": ".join(part for part in (path, keyword) if part) or "the schema"
        return RequestError(f"{self.param}: {where}: {reason}", self.param)


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The values that const or enum list, as texts; None: the schema lists none."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return {_text_of(value) for value in listed} if isinstance(listed, list) else None


def _text_of(value: Any) -> str:
    """Equal for values that JSON Schema calls equal: 1 and 1.0 are one number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if is_number else json.dumps(value, sort_keys=True)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that can match; integers are numbers."""
    kind = schema.get("type")
    kinds = {kind} if isinstance(kind, str) else set(kind) if isinstance(kind, list) else set(_ALL_TYPES)
    return {"number" if k == "integer" else k for k in kinds}


def _nullable(schema: Schema) -> Schema:
    """OpenAPI 3.0's nullable: true as a union with null."""
    if schema.pop("nullable", False) is not True:
        return schema
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema and "const" not in schema:
        return schema | {"type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
