"""Validation errors of request bodies, as one sentence and one of OpenAI's codes.

Owns the wording. Not here: the models (requests.py), the HTTP response (api/convert.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from medusa_dist.errors import RequestError

_UNION_LABELS = {"str", "int", "float", "bool"}


def explain(error: RequestValidationError) -> RequestError:
    """FastAPI's list of validation errors as one sentence about the first invalid field."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        cause = first.get("ctx", {}).get("error", first["msg"])
        return RequestError(f"the body is not valid JSON: {cause} (character {first['loc'][-1]})")
    if len(first["loc"]) < 2:
        return RequestError("the body must be a JSON object, sent with content-type: application/json")
    field = str(first["loc"][1])
    if first["type"] == "missing":
        return RequestError(f"{_path(first['loc'])} is required", field, "missing_required_parameter")
    same = [e for e in error.errors() if e["loc"][1] == first["loc"][1]]
    # A field of a union type has one error per type. Those of the type that was sent say what is wrong with it.
    same = [e for e in same if _error_code(e) != INVALID_TYPE] or same
    texts = dict.fromkeys(map(_error_text, same))
    path = _path(same[0]["loc"]) if len(texts) == 1 else field
    return RequestError(f"{path}: {'; or '.join(list(texts)[:4])}", field, _error_code(same[0]))


INVALID_TYPE = "invalid_type"
_CODES = {  # OpenAI's, by pydantic's error type
    "too_long": "array_above_max_length",
    "too_short": "empty_array",  # the minimum is 1 everywhere
    "string_too_long": "string_above_max_length",
    "literal_error": "invalid_value",
    "value_error": "invalid_value",
    "int_parsing_size": "integer_above_max_value",
}
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _error_code(error: Mapping[str, Any]) -> str:
    """OpenAI's code for one of pydantic's errors."""
    if _not_finite(error):
        return "invalid_value"
    sides = {"greater_than": "below_min_value", "less_than": "above_max_value"}
    for kind, side in sides.items():
        if error["type"].startswith(kind):
            bound = next(iter(error["ctx"].values()))
            return f"{'decimal' if isinstance(bound, float) else 'integer'}_{side}"
    return "empty_string" if _is_empty_text(error) else _CODES.get(error["type"], INVALID_TYPE)


def _error_text(error: Mapping[str, Any]) -> str:
    given = _not_finite(error)
    if given is not None:
        return f"must be a finite number, got {given}"
    return "must not be empty" if _is_empty_text(error) else str(error["msg"]).removeprefix("Value error, ")


def _is_empty_text(error: Mapping[str, Any]) -> bool:
    return error["type"] in ("too_short", "string_too_short") and error.get("input") == ""


def _not_finite(error: Mapping[str, Any]) -> str | None:
    """The number as JavaScript writes it, if it is none that JSON allows."""
    given = error.get("input")
    return _NOT_FINITE.get(str(given)) if isinstance(given, float) else None


def _path(loc: Sequence[int | str]) -> str:
    """("body", "messages", 0, "content", "str") -> messages[0].content"""
    path = str(loc[1])
    for part in loc[2:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_LABELS and "[" not in part:
            path += f".{part}"
    return path
