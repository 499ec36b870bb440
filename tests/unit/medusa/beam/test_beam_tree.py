"""What is drafted for beams: the order of guesses against all there are, and runs against expectations counted out."""

import math
import random
from itertools import product

import numpy as np
import pytest

from medusa_dist.medusa.beam.beam_tree import (
    WIDTHS,
    Completion,
    GuessRun,
    Levels,
    num_followed,
    plant,
    rank_guesses,
    whole_runs,
)
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.tree import Tree

R = 4


def candidates(rng: np.random.Generator, num_lists: int = 3) -> Candidates:
    """Lists that see no guesses: each with its own tokens, by falling confidence."""
    tokens = np.stack([rng.permutation(20)[:R] for _ in range(num_lists)])
    chances = np.sort(rng.uniform(0.01, 0.9, (num_lists, R)).astype(np.float32))[:, ::-1].copy()
    return Candidates(tokens.astype(np.int64), chances)


@pytest.mark.parametrize("seed", range(5))
def test_guesses_are_ranked_by_score_over_all_beams(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, ends = 3, frozenset({2, 3})
    made = [candidates(rng) for _ in range(width)]
    scores = rng.normal(0, 1, width).tolist()
    levels = rank_guesses(made, scores, ends, max_depth=3)
    assert len(levels) == 3
    parents = [(beam, ()) for beam in range(width)]
    for depth, level in enumerate(levels):
        worth = {}
        for beam, path in parents:
            for rank in range(R):
                tokens = (*path, int(made[beam].tokens[depth, rank]))
                at = [int(np.flatnonzero(made[beam].tokens[d] == token)[0]) for d, token in enumerate(tokens)]
                log_q = sum(math.log(made[beam].confidences[d, r]) for d, r in enumerate(at))
                if tokens[-1] not in ends:
                    worth[beam, tokens] = scores[beam] + log_q
        assert level == sorted(worth, key=lambda place: -worth[place])[: math.ceil(WIDTHS[-1] * width)]
        parents = level[: num_followed(depth + 1, width)]


def test_only_what_was_drafted_is_ranked() -> None:
    follows = np.array([[-1, 1], [-1, -1]])
    one = Candidates(np.array([[5, 6], [7, 0]]), np.array([[0.5, 0.4], [0.9, 0.0]], dtype=np.float32), follows)
    assert rank_guesses([None, one], [0.0, -1.0], frozenset(), 9) == [[(1, (5,)), (1, (6,))], [(1, (6, 7))]]
    assert rank_guesses([None, one], [0.0, -1.0], frozenset(), 1) == [[(1, (5,)), (1, (6,))]]
    assert rank_guesses([None, one], [0.0, -1.0], frozenset({6}), 9) == [[(1, (5,))]]
    assert rank_guesses([None, None], [0.0, -1.0], frozenset(), 9) == []


def test_completion_learns_from_the_worst_ranked_winner() -> None:
    """Winners at places 1 and 4 of two beams: c W must be 4, so c = 2."""
    level = [(0, (token,)) for token in range(10)]
    made = Completion(2)
    before = [list(row) for row in made.chances]
    made.learn([level], [[(0, (0,)), (0, (3,))], [(0, (0, 1)), (0, (3, 1))]])
    for width, old, new in zip(WIDTHS, before[0], made.chances[0], strict=True):
        assert (new > old) == (width >= 2.0) and new != old
    assert made.chances[1:] == before[1:], "nothing was drafted there"
    made.learn([level], [[(0, (0,)), (1, (5,))]])  # the second was not guessed
    assert all(new < 0.6 for new in made.chances[0])


def test_completion_chances_are_learned_and_fade_to_their_start() -> None:
    made, rng = Completion(4), random.Random(0)
    start = [list(row) for row in made.chances]
    level = [(0, (token,)) for token in range(32)]
    for _ in range(3000):
        worst = rng.choice([3, 3, 3, 7, 31])  # places 4 (c = 1), 8 (c = 2), 32 (c = 8)
        made.learn([level], [[(0, (0,)), (0, (worst,))]])
    assert made.chances[0] == pytest.approx([0.6, 0.6, 0.8, 0.8, 0.8, 1.0], abs=0.12)
    for _ in range(5000):
        made.fade()
    assert np.allclose(made.chances, start, atol=1e-3)


def expected_levels(chances: list[list[float]], taken: list[int]) -> float:
    """Levels beyond the first, if depth d is verified to the width number taken[d] (-1: not at all)."""
    total, reached = 0.0, 1.0
    for row, j in zip(chances, taken, strict=False):
        reached *= row[j] if j >= 0 else 0.0
        total += reached
    return total


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_runs_are_in_order_of_value_per_node(width: int) -> None:
    made = Completion(width)
    made.chances[2:] = [[0.0] * len(WIDTHS) for _ in made.chances[2:]]
    made.chances[0] = [0.1, 0.5, 0.52, 0.7, 0.71, 0.72]
    made.chances[1] = [0.3, 0.35, 0.5, 0.5, 0.55, 0.6]
    runs = made.runs
    assert all(run.last > run.first for run in runs)
    assert [run.value for run in runs] == sorted((run.value for run in runs), reverse=True)
    reached = {0: math.inf, 1: 0, 2: 0}
    for run in runs:
        assert run.first == reached[run.depth] and reached[run.depth - 1] > 0
        reached[run.depth] = run.last
    # All of it together is worth what all of it brings, and the first run is the best there is.
    total = sum(run.value * (run.last - run.first) for run in runs)
    assert total <= width * expected_levels(made.chances, [5, 5]) + 1e-6
    firsts = {j: width * made.chances[0][j] / math.ceil(c * width) for j, c in enumerate(WIDTHS)}
    assert runs[0].value == pytest.approx(max(firsts.values()))


def test_runs_change_with_what_is_learned() -> None:
    made = Completion(4)
    level = [(0, (token,)) for token in range(32)]
    before = made.runs[0].value
    for _ in range(200):
        made.learn([level], [[(0, (0,)), (0, (3,))]])
    assert made.runs[0] == GuessRun(1, 0, 4, pytest.approx(made.runs[0].value)) and made.runs[0].value > 1.5 * before


@pytest.mark.parametrize("seed", range(5))
def test_planted_trees_are_prefix_closed_and_within_the_limit(seed: int) -> None:
    rng, pick = np.random.default_rng(seed), random.Random(seed)
    width, most = 3, pick.choice([1, 3, 6, 100])
    made = [candidates(rng) for _ in range(width)]
    levels = rank_guesses(made, [0.0, -0.5, -1.0], frozenset(), 3)
    runs = Completion(width).runs
    planted = plant(levels, runs, width, most)
    for tree, values in planted:
        assert len(tree) == len(values) <= most
        assert values == sorted(values, reverse=True), "so the best n of all are the first few of each"
        assert len({(p, t) for p, t in zip(tree.parents, tree.tokens, strict=True)}) == len(tree)
    if most == 100:
        paths = {(beam, path) for beam, (tree, _) in enumerate(planted) for path in paths_of(tree)}
        wanted = {p for run in runs if run.depth <= 3 for p in levels[run.depth - 1][run.first : run.last]}
        above = {(beam, path[:end]) for beam, path in wanted for end in range(1, len(path))}
        assert paths == wanted | above


def paths_of(tree: Tree) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def test_planted_guess_brings_its_parent() -> None:
    levels: Levels = [[(0, (1,)), (0, (2,))], [(0, (2, 5))]]
    runs = [GuessRun(1, 0, 1, 0.9), GuessRun(2, 0, 1, 0.5), GuessRun(1, 1, 2, 0.1)]
    assert plant(levels, runs, 1, 9) == [(Tree((1, 2, 5), (-1, -1, 1)), [0.9, 0.5, 0.5])]
    assert plant(levels, runs, 1, 2) == [(Tree((1, 2), (-1, -1)), [0.9, 0.1])], "no room for both"


def test_run_that_is_cut_is_left_out() -> None:
    values = [[0.9, 0.9, 0.5], [0.9, 0.5, 0.5]]
    whole = {(2, 1), (3, 3), (0, 0)}
    for sizes in product(range(4), repeat=2):
        made = whole_runs(sizes, values)
        assert all(new <= old for new, old in zip(made, sizes, strict=True))
        if sizes in whole:
            assert tuple(made) == sizes
    assert whole_runs([3, 2], values) == [2, 1]
    assert whole_runs([2, 0], values) == [0, 0]
