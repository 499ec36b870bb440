"""Stop strings with special tokens in them, found though special tokens have no visible text.

Owns the search in the spelled text: visible characters, and special tokens as they are spelled. Not here: stop strings
in the visible text (text_stream.py), stop token ids (the engine). No torch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medusa_dist.text.token_text import special_texts


@dataclass(frozen=True, slots=True)
class SpecialStop:
    """A stop string that was completed. num_visible: its visible characters. num_after: those that follow it."""

    stop: str
    num_visible: int
    num_after: int


class SpecialStops:
    """The stop strings of one request that contain a special token of the tokenizer. Takes its tokens in order.

    A special token is found as a whole: a stop string neither begins nor ends inside of one, so ">" does not stop at
    each. A stop string that is written out in ordinary tokens is in the visible text and not searched here.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        texts = special_texts(tokenizer) if stops else {}
        self._stops = tuple(stop for stop in stops if any(text in stop for text in texts.values()))
        self._texts = texts if self._stops else {}
        # Units: visible characters, and whole special tokens. As many as a stop string can have, and one.
        self._units: deque[tuple[str, bool]] = deque(maxlen=max(map(len, self._stops), default=0) + 1)

    def push(self, new: str, hidden_id: int | None, pending: str) -> SpecialStop | None:
        """Take the visible text of a token, or the id of one without; the first stop string that this completes.

        pending: the bytes of an unfinished character so far, as text, which comes before a hidden token. Of two stop
        strings completed by the same unit, the longer.
        """
        if not self._stops:
            return None
        name = "" if hidden_id is None else self._texts.get(hidden_id, "")
        found = None
        for i, character in enumerate(new):
            self._units.append((character, False))
            found = found or self._completed([*self._units], len(new) - i - 1)
        if name:
            before = [*self._units, *((character, False) for character in pending)]
            found = self._completed([*before, (name, True)], 0)
            self._units.append((name, True))
        return found

    def num_open(self) -> int:
        """Visible characters at the end of the text that could belong to a stop string."""
        most = 0
        for text, num_visible, _ in _ends([*self._units]):
            if any(stop.startswith(text) and stop != text for stop in self._stops):
                most = max(most, num_visible)
        return most

    def _completed(self, units: list[tuple[str, bool]], num_after: int) -> SpecialStop | None:
        """The longest stop string at the end of the units that has a special token in it."""
        best = None
        for text, num_visible, has_special in _ends(units):
            if has_special and text in self._stops:
                best = SpecialStop(text, num_visible, num_after)
        return best


def _ends(units: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, int, bool]]:
    """All ends of the units, the shortest first: text, visible characters, and whether it has a special token."""
    text, num_visible, has_special = "", 0, False
    for unit, is_special in reversed(units):
        text, num_visible, has_special = unit + text, num_visible + (not is_special), has_special or is_special
        yield text, num_visible, has_special
