"""Unions whose errors are about the type that was sent, rather than about every type there is.

Owns the choice between a text and a list, and the one by `type`. Tags are in brackets, so that errors do not show them
as names of fields.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import Discriminator, Tag

from medusa_dist.errors import RequestError

TEXT, LIST = Tag("[text]"), Tag("[list]")


def _text_or_list(value: Any) -> str:
    return "[text]" if isinstance(value, str) else "[list]"


TEXT_OR_LIST = Discriminator(_text_or_list)  # for Annotated[..., TEXT] | Annotated[..., LIST]


def type_of(item: Any) -> Any:
    """The `type` of an object, sent or built; None if it has none."""
    return item.get("type") if isinstance(item, dict) else getattr(item, "type", None)


def tag_of(kind: Any, kinds: Iterable[str], what: str, field: str) -> str:
    """The tag of a type. Raises RequestError, naming the types that there are, for another one."""
    if kind not in kinds:
        raise RequestError(
            f"{what} of type {str(kind)[:40]!r} are not supported; the types are {', '.join(kinds)}", field
        )
    return f"[{kind}]"
