import random

import pytest

from medusa_dist.medusa.lookup.suffix_index import MAX_MATCH, Occurrence, SuffixIndex


def brute_force(tokens: list[int]) -> dict[int, int]:
    """Place -> length of the longest common suffix of the whole text and of the text before the place; at least 2."""
    found = {}
    for place in range(2, len(tokens)):
        length = 0
        while length < min(place, MAX_MATCH) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= 2:
            found[place] = length
    return found


@pytest.mark.parametrize("vocab", [2, 3, 5, 20])
def test_occurrences_are_those_of_brute_force_while_a_sequence_grows(vocab: int) -> None:
    rng = random.Random(vocab)
    tokens: list[int] = []
    index = SuffixIndex()
    for _ in range(60):
        tokens += [rng.randrange(vocab) for _ in range(rng.choice([1, 1, 2, 5]))]
        expected = brute_force(tokens)
        found = index.occurrences(tokens)
        assert found == sorted(found, key=lambda one: (-one.length, -one.next))
        assert all(expected[one.next] == one.length for one in found)
        # At most the newest 8 of each n-gram are compared, and the newest of all are always among them.
        newest = sorted(expected, reverse=True)[:8]
        assert {one.next for one in found} >= set(newest)
        assert len(found) == len(expected) or len(found) >= 8


def test_long_match_is_found_behind_many_newer_short_ones() -> None:
    phrase = list(range(100, 112))
    tokens = [*phrase, 7, *([110, 111, 3] * 20), *phrase]
    assert SuffixIndex().occurrences(tokens)[0] == Occurrence(12, 12)


def test_match_is_compared_over_at_most_32_tokens() -> None:
    tokens = [*range(50), 99, *range(50)]
    assert SuffixIndex().occurrences(tokens) == [Occurrence(50, MAX_MATCH)]


def test_text_without_repetition_has_no_occurrences() -> None:
    assert SuffixIndex().occurrences(list(range(40))) == SuffixIndex().occurrences([1]) == []
    assert SuffixIndex().occurrences([1, 2, 9, 8, 2]) == [], "one equal token is no match"
