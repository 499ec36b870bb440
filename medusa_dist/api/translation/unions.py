"""Unions whose errors are about the type that was sent, rather than about every type there is.

Owns the choice between a text and a list. Tags are in brackets, so that errors do not show them as names of fields.
"""

from typing import Any

from pydantic import Discriminator, Tag

TEXT, LIST = Tag("[text]"), Tag("[list]")


def _text_or_list(value: Any) -> str:
    return "[text]" if isinstance(value, str) else "[list]"


TEXT_OR_LIST = Discriminator(_text_or_list)  # for Annotated[..., TEXT] | Annotated[..., LIST]
