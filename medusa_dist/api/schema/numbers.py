"""Number types of request bodies: whole numbers may be written as 16.0, and ranges come from the table of fields.

Owns how numbers are read. Not here: the table (sampling_fields.py).
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from medusa_dist.sampling_fields import FIELDS


def _whole(value: Any) -> Any:
    """JSON has one kind of number, and some clients write all with a decimal point. 1.5 stays, and is refused later."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_each(value: Any) -> Any:
    """The same for token ids in lists of lists."""
    if not isinstance(value, list):
        return value
    return [_whole_each(item) if isinstance(item, list) else _whole(item) for item in value]


Whole = Annotated[int, BeforeValidator(_whole)]
wholes = BeforeValidator(_whole_each)
TokenIds = Annotated[list[int], wholes]


def within(name: str, low: float | None = None) -> Any:
    """The range of a sampling field, for its annotation; low: another lower bound over HTTP."""
    field = FIELDS[name]
    return Field(ge=field.low if low is None else low, le=field.high)
