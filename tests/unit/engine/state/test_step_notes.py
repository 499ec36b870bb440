"""Reasons of a tree's size, and records of trees that are too large."""

import pytest

from medusa_dist.engine.state.step_notes import MAX_NODES, StepNotes
from medusa_dist.medusa.trees.tree import Tree
from medusa_dist.outputs import StepRecord, TreeReason

CHAIN = Tree((7, 8, 9), (-1, 0, 1))


def record(notes: StepNotes, tree: Tree, accepted: tuple[int, ...] = ()) -> StepRecord:
    return notes.record(tree, [("heads",)] * len(tree), accepted, len(accepted) + 1, TreeReason.ALL)


def test_reason_names_what_bounded_the_tree_last() -> None:
    notes = StepNotes()
    assert notes.reason(0, has_candidates=False) is TreeReason.PROMPT
    notes.begin(1)
    assert notes.reason(0, has_candidates=True) is TreeReason.LAST_TOKEN
    notes.offer(7, TreeReason.MAX_NODES)
    assert notes.reason(7, has_candidates=True) is TreeReason.MAX_NODES
    notes.plan(5, 1.25)
    assert notes.reason(5, has_candidates=True) is TreeReason.BUDGET
    assert notes.reason(3, has_candidates=True) is TreeReason.ROOM, "the scheduler cut what the budget allowed"
    notes.undrafted = TreeReason.PAUSED
    assert notes.reason(0, has_candidates=False) is TreeReason.PAUSED
    notes.restart()
    assert notes.reason(0, has_candidates=False) is TreeReason.PROMPT


def test_record_has_chances_given_the_parent() -> None:
    notes = StepNotes()
    notes.begin(3)
    notes.offer(4, TreeReason.ALL)
    notes.plan(3, 1.5)
    notes.values = (0.5, 0.25, 0.2)
    made = record(notes, CHAIN, (0, 1))
    assert made.chances == pytest.approx((0.5, 0.5, 0.8))
    assert (made.tokens, made.parents, made.accepted) == ((7, 8, 9), (-1, 0, 1), (0, 1))
    assert (made.num_drafts, made.num_offered, made.num_sequences, made.speed_up) == (3, 4, 3, 1.5)
    notes.begin(1)
    assert record(notes, CHAIN).chances == (), "values of an earlier step are not shown"


def test_large_tree_keeps_its_first_nodes_and_the_accepted_path() -> None:
    """A root with many children, and a path that goes on below the last of them."""
    num = 3 * MAX_NODES
    tree = Tree((*range(num), 1000, 1001), (*[-1] * num, num - 1, num))
    notes = StepNotes()
    notes.values = (0.5,) * len(tree)
    made = record(notes, tree, (num - 1, num, num + 1))
    assert len(made.tokens) == len(made.parents) == len(made.chances) == len(made.drafters) == MAX_NODES + 3
    assert made.num_drafts == num + 2
    assert [made.tokens[node] for node in made.accepted] == [num - 1, 1000, 1001]
    assert [made.parents[node] for node in made.accepted] == [-1, MAX_NODES, MAX_NODES + 1]
    assert all(parent < node for node, parent in enumerate(made.parents))
