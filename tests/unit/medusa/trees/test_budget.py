"""The budget: every n tried by hand, and the cost curve between and beyond its points."""

import random

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


def one_by_one(values: list[float], num_sequences: int, num_other_rows: int, cost: StepCost) -> tuple[int, float]:
    """best_budget's slow twin: the rate of each number of drafts, by its definition."""
    base_rows = num_sequences + num_other_rows
    plain_s, draft_s = cost(num_sequences), cost.drafting(num_sequences)

    def rate(expected: float, n: int) -> float:
        more_s = cost(base_rows + n) - cost(base_rows)
        if num_other_rows:
            more_s = max(0.0, more_s)
        return expected / (plain_s + more_s + (n * cost.node_s + cost.tree_s if n else 0.0) + draft_s)

    expected = float(num_sequences)
    best, best_rate = 0, rate(expected, 0)
    for n, value in enumerate(values, start=1):
        expected += value
        if rate(expected, n) > best_rate:
            best, best_rate = n, rate(expected, n)
    return best, best_rate * plain_s / num_sequences


def test_all_budgets_at_once_are_bitwise_those_found_one_by_one() -> None:
    rng = random.Random(4)
    for _ in range(300):
        rows = sorted(rng.sample(range(1, 140), rng.randrange(2, 8)))
        cost = StepCost(
            tuple(rows),
            tuple(rng.uniform(1e-3, 2e-2) for _ in rows),  # not monotone, as measured ones
            *(rng.choice([0.0, rng.uniform(0, 1e-3)]) for _ in range(4)),
        )
        values = sorted((rng.random() for _ in range(rng.choice([0, 1, 7, 90]))), reverse=True)
        asked = values, rng.randrange(1, 40), rng.choice([0, 0, 5, 200]), cost
        assert best_budget(*asked) == one_by_one(*asked)
