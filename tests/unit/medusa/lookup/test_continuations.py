import pytest

from medusa_dist.medusa.lookup.continuations import NUM_GUESSES, continuations
from medusa_dist.medusa.lookup.suffix_index import SuffixIndex
from medusa_dist.medusa.trees.candidates import NO_TOKEN, NOWHERE, Candidates


def drafted(tokens: list[int], max_depth: int = 6) -> Candidates | None:
    return continuations(tokens, SuffixIndex().occurrences(tokens), max_depth)


def paths(made: Candidates, place: int = 0) -> set[tuple[int, ...]]:
    """All paths of guesses from a list on."""
    found = set()
    for index, token in enumerate(made.guesses(place)[0]):
        after = made.list_after(place, index)
        found |= {(token,)} if after == NOWHERE else {(token, *rest) for rest in paths(made, after)}
    return found


def test_one_occurrence_is_copied_up_to_the_depth() -> None:
    made = drafted([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], 4)
    assert made is not None and paths(made) == {(3, 4, 5, 6)}
    # Weights are the lengths of the match: 2, and one more per copied token; one vote against all.
    assert [made.guesses(place)[1][0] for place in range(4)] == pytest.approx([2 / 3, 3 / 4, 4 / 5, 5 / 6])


def test_copy_continues_into_its_own_output() -> None:
    made = drafted([5, 1, 2, 1, 2], 6)
    assert made is not None and paths(made) == {(1, 2, 1, 2, 1, 2)}


def test_equal_beginnings_are_shared_and_longer_matches_weigh_more() -> None:
    made = drafted([8, 1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2], 2)
    assert made is not None and paths(made) == {(3, 4), (3, 5)}
    # Both continue with 3. The first also has the 8 before, so it weighs 3 of 5 votes, and 4 of 7 one token later.
    assert made.guesses(0) == ([3], pytest.approx([5 / 6]))
    assert made.guesses(1) == ([4, 5], pytest.approx([4 / 8, 3 / 8]))


def test_different_next_tokens_are_guesses_of_one_list_in_falling_order() -> None:
    tokens = [1, 2, 10, 1, 2, 11, 1, 2, 11, 1, 2, 12, 1, 2, 13, 1, 2]
    made = drafted(tokens, 1)
    assert made is not None
    ids, chances = made.guesses(0)
    assert len(ids) == NUM_GUESSES and ids[0] == 11 and chances == sorted(chances, reverse=True)
    assert sum(chances) < 1


def test_padding_is_no_guess() -> None:
    made = drafted([0, 0, 1, 0, 0, 1, 0, 0], 3)
    assert made is not None and made.tokens.shape[1] == NUM_GUESSES and (made.tokens == NO_TOKEN).any()
    assert all(token != NO_TOKEN for place in range(len(made.tokens)) for token in made.guesses(place)[0])
    assert made.index_of(0, 2) == NOWHERE


def test_text_without_repetition_has_no_candidates() -> None:
    assert drafted([1, 2, 3, 4]) is None
