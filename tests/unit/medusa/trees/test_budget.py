"""The budget: every n tried by hand, and the cost curve between and beyond its points."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_dist.medusa.trees.budget import StepCost, best_budget


def test_step_cost_is_linear_between_its_points_and_beyond() -> None:
    cost = StepCost((4, 8, 16), (1.0, 2.0, 2.5))
    assert [cost(n) for n in (4, 6, 8, 12, 16)] == [1.0, 1.5, 2.0, 2.25, 2.5]
    assert cost(1) == cost(4) == 1.0  # lone rows are padded
    assert cost(32) == pytest.approx(3.5)  # as steep as between the last two


@pytest.mark.parametrize("rows", [(4,), (8, 4), (4, 4)])
def test_step_cost_requires_two_points_of_rising_rows(rows: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        StepCost(rows, (1.0,) * len(rows))


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[float], int, int, StepCost]:
    values = sorted(draw(st.lists(st.floats(0.001, 1), max_size=12)), reverse=True)
    seconds = draw(st.lists(st.floats(0.001, 1), min_size=4, max_size=4))  # not even monotone
    cost = StepCost((4, 6, 12, 20), tuple(seconds), draw(st.floats(0, 0.1)))
    return values, draw(st.integers(1, 9)), draw(st.integers(0, 9)), cost


@settings(max_examples=300, deadline=None)
@given(situations())
def test_best_budget_equals_trying_every_number_of_drafts(situation: tuple[list[float], int, int, StepCost]) -> None:
    values, num_sequences, num_other, cost = situation

    def rate(n: int) -> float:
        added = cost(num_sequences + num_other + n) - cost(num_sequences + num_other)
        added = max(added, 0.0) if num_other else added
        return (num_sequences + sum(values[:n])) / (cost(num_sequences) + added + cost.draft_s)

    n, gain = best_budget(values, num_sequences, num_other, cost)
    assert rate(n) == pytest.approx(max(rate(m) for m in range(len(values) + 1)), rel=1e-9)
    plain = num_sequences / cost(num_sequences)  # without heads, drafting costs nothing
    assert gain == pytest.approx(rate(n) / plain, rel=1e-9)


def test_gain_is_below_1_where_drafts_do_not_pay() -> None:
    flat = StepCost((4, 64), (1.0, 1.0), draft_s=0.5)
    assert best_budget([0.9, 0.8, 0.1], 1, 0, flat) == (3, pytest.approx(2.8 / 1.5))
    assert best_budget([0.2], 1, 0, flat) == (1, pytest.approx(1.2 / 1.5))
    steep = StepCost((4, 8), (1.0, 5.0))
    assert best_budget([0.9, 0.9], 4, 0, steep) == (0, 1.0)
    stepped = StepCost((4, 5, 6), (1.0, 1.9, 1.9))  # the second draft rides for free
    assert best_budget([1.0, 1.0, 1.0], 4, 0, stepped)[0] == 0
    # The search does not end at the first n that does not pay: 4 rows, 4 tokens a second; 10 rows, 5 a second.
    assert best_budget([1.0] * 9, 1, 0, StepCost((4, 5, 6), (1.0, 2.0, 2.0)))[0] == 9


def test_cost_per_node_lowers_the_budget() -> None:
    """Four rows are free on the curve; at a tenth of a step each, only drafts likely enough are worth it."""
    free = StepCost((2, 16), (1.0, 1.0))
    assert best_budget([0.9, 0.5, 0.2, 0.05], 1, 0, free)[0] == 4
    assert best_budget([0.9, 0.5, 0.2, 0.05], 1, 0, free.raised(0.0, 0.0, 0.1))[0] == 2
    assert best_budget([0.9, 0.5, 0.2, 0.05], 1, 0, free.raised(0.0, 0.0, 2.0))[0] == 0


def test_prompt_rows_beside_them_do_not_make_drafts_cheap() -> None:
    """Each row costs a second; a draft saves half a sequence's step of one second. 60 rows of prompt change nothing."""
    steep = StepCost((1, 100), (1.0, 100.0))
    assert best_budget([0.5], 1, 0, steep) == best_budget([0.5], 1, 60, steep) == (0, 1.0)
