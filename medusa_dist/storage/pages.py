"""Ids that sort by time, and pages of lists, as OpenAI's `after`, `limit` and `order` have it.

Pure functions. Not here: what is listed (file_store.py, batch_store.py).
"""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from medusa_dist.errors import RequestError

T = TypeVar("T")
Order = Literal["asc", "desc"]
_DIGITS = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list. has_more: whether entries follow it."""

    entries: list[T]
    has_more: bool


def new_id(prefix: str, now: float | None = None) -> str:
    """A new id: the prefix, 12 hex digits of milliseconds, 20 of chance. Later ids sort later."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    return f"{prefix}{milliseconds:012x}{secrets.token_hex(10)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether a text has the form of an id with this prefix; anything else must not become a path."""
    return text.startswith(prefix) and _DIGITS.fullmatch(text.removeprefix(prefix)) is not None


def page(
    ids: Sequence[str], load: Callable[[str], T | None], *, after: str | None, limit: int, order: Order = "desc"
) -> Page[T]:
    """The entries behind `after`, at most `limit`.

    ids: of all entries. load: an entry by its id, None for one that does not count; called for no more than needed.
    Raises RequestError for an `after` that is not in the list.
    """
    ordered = sorted(ids, reverse=order == "desc")
    if after is not None:
        if after not in ordered:
            raise RequestError(f"after: there is no {after[:100]!r} in this list", "after", "invalid_value")
        ordered = ordered[ordered.index(after) + 1 :]
    found: list[T] = []
    for one in ordered:
        entry = load(one)
        if entry is None:
            continue
        if len(found) == limit:
            return Page(found, True)
        found.append(entry)
    return Page(found, False)
