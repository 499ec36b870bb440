"""Trees drawn: values by hand, and what a reader finds in the picture."""

import io

import pytest
from rich.console import Console, RenderableType

from medusa_dist.heads_tools.explain import draw_static, draw_step, likeliest, show_steps, static_chances, summary
from medusa_dist.heads_tools.trace_steps import TracedStep
from medusa_dist.medusa.trees.tree import Tree

ACCURACIES = ((0.5, 0.7), (0.2, 0.3))
PATHS = ((0,), (1,), (0, 0))


class Letters:
    """Token 0 is a, 1 is b, ...; 26 ends a line."""

    def decode(self, ids: list[int]) -> str:
        return "".join("\n" if i == 26 else chr(97 + i) for i in ids)


def drawn(what: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(what)
    return stream.getvalue()


def test_path_chances_are_products_and_empty_beyond_the_accuracies() -> None:
    assert static_chances(PATHS, ACCURACIES) == pytest.approx({(0,): 0.5, (1,): 0.2, (0, 0): 0.1})
    assert static_chances([(0,), (0, 0), (0, 0, 0)], ACCURACIES) == {}, "deeper than the accuracies"
    assert static_chances([(2,)], ACCURACIES) == {}, "a rank they do not know"


def test_likeliest_tree_takes_paths_by_falling_chance() -> None:
    assert likeliest(ACCURACIES, 3) == [(0,), (1,), (0, 0)]
    assert likeliest(ACCURACIES, 99) == [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert likeliest((), 3) == []


def test_drawn_static_tree_shows_guesses_chances_and_expectation() -> None:
    text = drawn(draw_static(PATHS, ACCURACIES, "mine"))
    for part in ("mine", "[0, 0] best guess of head 2", "[1] 2nd guess of head 1", "20.0 %", "by depth 2/1"):
        assert part in text, part
    assert "expected 1.80 tokens/step" in text
    assert text.index("[0, 0]") < text.index("[1]"), "a child stands below its parent"
    assert "no accuracies for it" in drawn(draw_static(PATHS, (), "mine"))


STEP = TracedStep(
    root=1,
    tree=Tree((2, 3, 4), (-1, -1, 0)),
    chances=(0.5, 0.25, 0.5),
    nodes=(0, 2),
    tokens=(2, 4, 26),
    drafters=(("heads",), ("heads",), ("lookup", "heads")),
)


def test_node_values_multiply_along_the_path() -> None:
    assert STEP.values == [0.5, 0.25, 0.25]


def test_drawn_step_marks_accepted_and_rejected_drafts_and_the_choice() -> None:
    lines = drawn(draw_step(STEP, Letters(), 2, [26, 0, 1])).splitlines()
    assert lines[0].startswith("step 2") and lines[0].endswith("⏎a'b'")
    assert "✓ 'c'" in lines[1] and "50 %" in lines[1]
    assert "✓ 'e'" in lines[2] and lines[2].endswith("lookup") and "lookup" not in lines[1]
    assert "➜ '⏎'  the model's own choice" in lines[3]
    assert "· 'd'" in lines[4]
    assert lines[5] == "3 drafts, 1.00 expected to be accepted, 2 accepted"


def test_drawn_step_without_drafts_says_so() -> None:
    text = drawn(draw_step(TracedStep(1, Tree(), (), (), (7,), ()), Letters(), 5, [1]))
    assert "nothing was drafted" in text and "'h'" in text


def test_shown_steps_end_with_the_answer_and_a_summary() -> None:
    stream = io.StringIO()
    steps = [TracedStep(9, Tree(), (), (), (1,), ()), STEP]
    show_steps(steps, Letters(), Console(file=stream, width=100))
    text = stream.getvalue()
    assert "step 1 " not in text and "step 2 " in text
    assert "bce\n" in text
    assert summary(steps) in text
    assert "4 tokens in 2 steps = 2.00 tokens/step; of 3 drafts 1.0 were expected to be accepted, 2 were" in text
