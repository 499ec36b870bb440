"""What a step log says, counted by hand."""

import pytest

from medusa_dist.engine.steps.record import VerifiedTree
from medusa_dist.heads_tools.steps.summary import MIN_STEPS, summarise
from medusa_dist.medusa.trees.tree import Tree
from tests.support.step_records import step, tree


def test_drafts_are_counted_cut_by_cut_by_depth_and_by_drafter() -> None:
    summary = summarise([step(tree((0, 2))), step(tree(()), tree((1,), ranked=3, worthwhile=3, name="b"), drafted=0)])
    assert (summary.steps, summary.sequence_steps, summary.tokens) == (2, 3, 3 + 1 + 2)
    assert (summary.ranked, summary.worthwhile, summary.verified.verified, summary.verified.accepted) == (13, 11, 9, 3)
    assert summary.verified.expected == pytest.approx(3 * 0.875)
    assert [(head.verified, head.accepted) for head in summary.heads] == [(6, 2), (3, 1)]
    assert {name: (t.verified, t.accepted) for name, t in summary.drafters.items()} == {
        "heads": (6, 2),
        "lookup": (6, 2),
    }
    assert summary.heads[0].share == pytest.approx(1 / 3) and summary.heads[1].expected == pytest.approx(0.375)
    assert summary.lengths == {0: 1, 1: 1, 2: 1} and summary.requests == {"a", "b"}
    assert summary.idle == {"heads": 1} and summary.undrafted == 0
    assert summary.seconds["forward"] == pytest.approx(0.04) and summary.end - summary.begin == pytest.approx(0.025)


def test_sequences_without_drafts_and_trees_without_values_are_counted_too() -> None:
    nothing = VerifiedTree("a", 3, 9, Tree(), (), (), 6, 0, (), (7,))
    unknown = VerifiedTree("a", 4, 7, Tree((1,), (-1,)), (), (), 1, 1, (0,), (1, 8))
    summary = summarise([step(nothing), step(unknown)])
    assert summary.undrafted == 1 and summary.ranked == 7 and summary.worthwhile == 1
    assert summary.verified.accepted == 1 and summary.verified.expected == 0 and not summary.drafters


def test_break_even_is_the_cost_of_a_row_over_the_cost_of_a_step() -> None:
    """10 ms and 2 ms a row; a step of one sequence takes 20 ms on average, so a row is a tenth of what it may save."""
    steps = [step(tree(), rows=rows, ms=10.0 + 2.0 * rows) for rows in (4, 5, 6)] * MIN_STEPS
    summary = summarise(steps)
    assert summary.row_s == pytest.approx(0.002)
    assert summary.break_even == pytest.approx(0.002 / 0.020)
    two = summarise([step(tree(), tree(name="b"), rows=rows, ms=10.0 + 2.0 * rows) for rows in (4, 5, 6)] * MIN_STEPS)
    assert two.break_even == pytest.approx(2 * 0.002 / 0.020), "a step is shared by its sequences"


def test_break_even_is_not_made_up() -> None:
    same = [step(tree(), rows=4, ms=20.0)] * 99
    assert summarise(same).break_even is None, "steps of one size do not tell what a row costs"
    few = [step(tree(), rows=rows, ms=10.0 + rows) for rows in (1, 2, 3)]
    assert summarise(few).break_even is None
    prompts = [step(tree(), rows=rows, ms=10.0 + rows, prompt_rows=rows - 1) for rows in (4, 5, 6)] * MIN_STEPS
    assert summarise(prompts).break_even is None, "steps with prompts are not compared"
    usual = [step(tree(), rows=rows, ms=10.0 + 2.0 * rows) for rows in (4, 5, 6)] * MIN_STEPS
    assert summarise([*usual, step(tree(), rows=6, ms=5000.0)]).row_s == pytest.approx(0.002), "an outlier"
