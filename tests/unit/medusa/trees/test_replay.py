"""The replay's arithmetic, on answers made by hand; tests/unit/heads_tools/test_record_drafts.py compares it with the
engine."""

import numpy as np
import pytest

from medusa_dist.medusa.trees.calibration import GREEDY, Calibration
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.replay import (
    Bin,
    RecordedAnswer,
    accuracies,
    best_static,
    calibration_error,
    dynamic_curve,
    fit,
    node_chances,
    num_steps,
    path_chances,
    reliability,
    static_accepted,
    static_curve,
    tokens_per_step,
    truth_guess_indices,
    truth_nodes,
)
from medusa_dist.medusa.trees.tree import Tree, values_of

ODDS = np.array([[0.6, 0.3], [0.5, 0.2]], dtype=np.float32)


def guesses(*heads: tuple[int, int], odds: np.ndarray = ODDS) -> Candidates:
    return Candidates(np.array(heads), odds)


# After 10: head 1 has 11 first, head 2 has 12 second. After 11: nothing right. After 12: head 1 has 13 second.
ANSWER = RecordedAnswer(
    tokens=(10, 11, 12, 13),
    guesses=(guesses((11, 7), (8, 12)), guesses((5, 6), (13, 4)), guesses((9, 13), (1, 2))),
    sampling_mode=GREEDY,
)


def test_guess_indices_of_the_truth_end_at_the_first_miss() -> None:
    assert [truth_guess_indices(g, ANSWER.after(i)) for i, g in enumerate(ANSWER.guesses)] == [(0, 1), (), (1,)]


def test_truth_nodes_are_those_that_would_be_accepted() -> None:
    tree = Tree(tokens=(11, 8, 7, 12, 12), parents=(-1, 0, -1, 2, 0))
    assert truth_nodes(tree, (11, 12, 13)) == [0, 4]
    assert truth_nodes(tree, (9,)) == truth_nodes(Tree(), (11,)) == []


def test_replayed_step_begins_where_the_last_one_ended() -> None:
    # Place 1, where nothing is right, is skipped if the step before accepts two.
    assert num_steps(ANSWER, [0, 0, 0]) == 4
    assert num_steps(ANSWER, [2, 0, 1]) == 2
    assert num_steps(ANSWER, [1, 0, 1]) == 3
    assert tokens_per_step([ANSWER, ANSWER], [[0, 0, 0], [2, 0, 1]]) == 8 / 6


def test_drafts_beyond_the_end_save_no_step() -> None:
    assert num_steps(ANSWER, [9, 9, 9]) == 2


def test_accuracies_add_up_over_guesses_and_leave_out_missing_tokens() -> None:
    # Head 1 is judged at three places, head 2 at two: behind 12 there is no second token.
    assert accuracies([ANSWER]) == [pytest.approx([1 / 3, 2 / 3]), pytest.approx([1 / 2, 1.0])]


def test_static_trees_are_replayed_and_the_best_is_found() -> None:
    assert static_accepted(ANSWER, [(0,), (1,)]) == [1, 0, 1]
    assert static_accepted(ANSWER, [(0,), (0, 1)]) == [2, 0, 0]
    chances = path_chances([ANSWER])
    assert chances == {(0,): 1 / 3, (1,): 1 / 3, (0, 1): 1 / 3}
    assert best_static(chances, 2) == [(0,), (1,)]  # equal gains: the shallower
    assert best_static(chances, 99) == [(0,), (1,), (0, 1)]


def test_best_static_tree_is_prefix_closed() -> None:
    rng = np.random.default_rng(0)
    answers = [random_answer(rng) for _ in range(20)]
    chances = path_chances(answers)
    for n in range(1, 20):
        paths = best_static(chances, n)
        assert len(paths) == n and all(path[:-1] in paths for path in paths if len(path) > 1)


def random_answer(rng: np.random.Generator, heads: int = 3, ranks: int = 4, length: int = 30) -> RecordedAnswer:
    """Guesses that are right with just the chance they claim."""
    tokens = tuple(int(t) for t in rng.integers(0, 50, length))
    made = []
    for place in range(length - 1):
        known = np.tile(np.arange(100, 100 + ranks), (heads, 1))
        odds = np.sort(rng.dirichlet(np.ones(ranks + 1), heads)[:, :ranks], axis=1)[:, ::-1]
        for head, truth in enumerate(tokens[place + 1 : place + 1 + heads]):
            rank = rng.choice(ranks + 1, p=[*odds[head], 1 - odds[head].sum()])
            if rank < ranks:
                known[head, rank] = truth
        made.append(Candidates(known, odds.astype(np.float32)))
    return RecordedAnswer(tokens, tuple(made), GREEDY)


def test_curves_rise_and_dynamic_trees_gain_more_than_static_ones() -> None:
    rng = np.random.default_rng(1)
    answers = [random_answer(rng) for _ in range(60)]
    honest = Calibration()
    honest.slopes, honest.intercepts = [1.0, 1.0], [[0.0] * 16] * 2
    dynamic = dynamic_curve(answers, 12, honest)
    static = static_curve(answers, 12)
    assert dynamic == sorted(dynamic) and dynamic[0] == static[0]  # one draft leaves no choice
    assert all(d > s for d, s in zip(dynamic[3:], static[3:], strict=True))
    assert static[-1] > static[0] > 1.0


def test_calibration_error_is_low_for_honest_and_high_for_inflated_ones() -> None:
    rng = np.random.default_rng(2)
    answers = [random_answer(rng) for _ in range(60)]
    assert calibration_error(reliability(answers, None)) < 0.02
    boasting = [
        RecordedAnswer(a.tokens, tuple(Candidates(g.tokens, g.confidences**0.5) for g in a.guesses), a.sampling_mode)
        for a in answers
    ]
    error = calibration_error(reliability(boasting, None))
    assert error > 0.15 > 3 * calibration_error(reliability(boasting, fit(boasting)))


def test_calibration_error_weighs_by_count() -> None:
    assert calibration_error([Bin(3, 0.5, 0.4), Bin(1, 0.9, 0.5)]) == pytest.approx((3 * 0.1 + 0.4) / 4)
    assert calibration_error([]) == 0.0


SEEN = Candidates(
    tokens=np.array([[11, 7], [8, 12], [12, 9]]),
    confidences=np.array([[0.6, 0.3], [0.5, 0.2], [0.4, 0.1]], dtype=np.float32),
    follows=np.array([[1, 2], [-1, -1], [-1, -1]]),
)


def test_guesses_that_depend_on_the_path_are_replayed_by_path() -> None:
    """Behind 11 head 2 guesses 12 second, behind 7 first; behind those nobody guessed."""
    assert truth_guess_indices(SEEN, (11, 12, 13)) == (0, 1) and truth_guess_indices(SEEN, (7, 12)) == (1, 0)
    # After 10 comes 5, which head 1 does not have, so head 2 is not judged there; after 5 comes 12.
    assert accuracies([RecordedAnswer((10, 5, 12), (SEEN, SEEN), GREEDY)]) == [[0.0, 0.0]]
    assert accuracies([RecordedAnswer((10, 11, 12), (SEEN, SEEN), GREEDY)]) == [[0.5, 0.5], [0.0, 1.0]]


def test_node_chances_are_the_confidences_on_their_path() -> None:
    tree = Tree((11, 8, 12), (-1, 0, 0))
    assert node_chances(tree, values_of(tree, ANSWER.guesses[0])) == pytest.approx([0.6, 0.5, 0.2])
    tree = Tree(tokens=(11, 7, 12, 12), parents=(-1, -1, 1, 0))
    assert node_chances(tree, values_of(tree, SEEN)) == pytest.approx([0.6, 0.3, 0.4, 0.2])
