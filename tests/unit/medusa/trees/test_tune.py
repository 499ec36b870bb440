"""Tokens per step over seconds per step, by hand."""

import numpy as np
import pytest

from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.calibration import GREEDY, Calibration
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.replay import RecordedAnswer, dynamic_curve
from medusa_dist.medusa.trees.tune import Point, budgeted, fastest, fixed, plain

# 10 ms up to 8 rows, then 1 ms a row; drafting 1 ms and 0.5 ms a sequence.
COST = StepCost((4, 8, 16), (0.010, 0.010, 0.018), 0.001, 0.0005)


def answer(length: int = 21) -> RecordedAnswer:
    """One head with two guesses: the truth is the first at even places, the second at odd ones."""
    tokens = tuple(range(length))
    guesses = tuple(
        Candidates(np.array([[i + 1, 99] if i % 2 == 0 else [99, i + 1]]), np.array([[0.6, 0.3]], dtype=np.float32))
        for i in range(length - 1)
    )
    return RecordedAnswer(tokens, guesses, GREEDY)


def honest() -> Calibration:
    calibration = Calibration()
    calibration.slopes, calibration.intercepts = [1.0] * 3, [[0.0] * 16] * 3
    return calibration


def test_points_have_tokens_per_step_and_seconds_of_each_tree_size() -> None:
    assert plain(2, COST) == Point(2, 0, 1.0, 0.010)
    points = fixed([1.5, 1.6, 1.65], 4, COST)
    assert [p.nodes for p in points] == [1, 2, 3]
    assert [p.seconds for p in points] == pytest.approx([0.013, 0.017, 0.021])
    assert points[0].tokens_per_s == pytest.approx(4 * 1.5 / 0.013)
    assert fastest(points) == points[0]
    assert fastest([Point(1, 5, 1.0, 1.0), Point(1, 2, 1.0, 1.0)]).nodes == 2


def test_budget_takes_all_drafts_where_they_are_free() -> None:
    free = StepCost((4, 64), (0.010, 0.010))
    for cap in (1, 2):
        point = budgeted([answer()], honest(), free, 1, cap)
        # The replay counts the prompt's step, which emits one token, and the budget does not.
        steps = 1 + 20 / point.tokens_per_step
        assert 21 / steps == pytest.approx(dynamic_curve([answer()], cap, honest())[-1])
        assert point.seconds == pytest.approx(0.010)


def test_budget_takes_no_draft_where_they_cost_too_much() -> None:
    dear = StepCost((4, 5), (0.010, 0.020))
    point = budgeted([answer()], honest(), dear, 4, 2)
    assert (point.tokens_per_step, point.seconds) == (1.0, pytest.approx(0.010))


def test_budget_counts_the_drafts_of_all_sequences_of_a_batch() -> None:
    # Alone both drafts fit into the flat part; four sequences have room for one each.
    assert budgeted([answer()], honest(), COST, 1, 2).seconds == pytest.approx(0.0115)
    assert budgeted([answer()], honest(), COST, 4, 2).seconds == pytest.approx(0.013)
