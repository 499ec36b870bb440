"""SuffixIndex: where the last tokens of a sequence occurred before.

Owns the index of one sequence. Not here: what is drafted from the occurrences (continuations.py).
Two tables map the last 2 and the last 8 tokens to the places where they ended before. The second finds long matches
that newer short ones would hide. A place costs two entries, about 300 bytes a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

_NGRAMS = (8, 2)  # longest first: the order of the search
_NEWEST = 8  # newest places compared per n-gram
MAX_MATCH = 32  # tokens compared backwards; longer matches are not more certain


class Occurrence(NamedTuple):
    """The last `length` tokens also end just before index `next` of the sequence."""

    next: int
    length: int


class SuffixIndex:
    """The index of one sequence, whose tokens only grow."""

    def __init__(self) -> None:
        self._tables: dict[int, dict[tuple[int, ...], list[int]]] = {n: {} for n in _NGRAMS}
        self._num_indexed = 0

    def occurrences(self, tokens: Sequence[int]) -> list[Occurrence]:
        """Earlier occurrences of the end of `tokens`, at least 2 tokens long: longest first, then newest.

        tokens: all tokens of the sequence, including those of earlier calls.
        """
        self._index(tokens)
        found: dict[int, int] = {}
        for n in _NGRAMS:
            for place in self._tables[n].get(tuple(tokens[-n:]), ())[: -_NEWEST - 1 : -1]:
                if place not in found:
                    found[place] = _match_length(tokens, place, n)
        return [Occurrence(place, length) for place, length in sorted(found.items(), key=lambda x: (-x[1], -x[0]))]

    def _index(self, tokens: Sequence[int]) -> None:
        """Add all n-grams that are followed by a known token."""
        for n, table in self._tables.items():
            for end in range(max(n, self._num_indexed), len(tokens)):
                table.setdefault(tuple(tokens[end - n : end]), []).append(end)
        self._num_indexed = max(self._num_indexed, len(tokens))


def _match_length(tokens: Sequence[int], place: int, known: int) -> int:
    """How many tokens before `place` equal the last ones. known: so many do."""
    most = min(MAX_MATCH, place)
    length = known
    while length < most and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return min(length, most)
