"""Trees: the best N nodes against all prefix-closed subsets, ties, static trees, and each refusal's words."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_dist.errors import ConfigError
from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.medusa.trees.tree import ROOT, Tree, best_tree, check_paths, order_paths, static_tree, values_of

Path = tuple[int, ...]


def candidates(confidences: list[list[float]]) -> Candidates:
    """Guess r of head k + 1 is token 10 * (k + 1) + r."""
    array = np.array(confidences, dtype=np.float32)
    heads, ranks = array.shape
    tokens = 10 * np.arange(1, heads + 1)[:, None] + np.arange(ranks)
    return Candidates(tokens.astype(np.int64), array)


def value_of(made: Candidates, path: Path) -> float:
    value = 1.0
    for depth, rank in enumerate(path):
        value *= float(made.confidences[depth, rank])
    return value


def paths_of(tree: Tree) -> list[Path]:
    """Each node as the ranks on its path, read back from the tokens."""
    paths: list[Path] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), token % 10))
        assert token // 10 == len(paths[-1])
    return paths


def closed_subsets(path: Path, heads: int, ranks: int) -> list[frozenset[Path]]:
    """Every prefix-closed set of nodes strictly below `path`."""
    if len(path) == heads:
        return [frozenset()]
    branches = []
    for rank in range(ranks):
        child = (*path, rank)
        branches.append([frozenset(), *({child} | below for below in closed_subsets(child, heads, ranks))])
    return [frozenset().union(*chosen) for chosen in product(*branches)]


SUBSETS = {shape: closed_subsets((), *shape) for shape in ((1, 5), (2, 3), (3, 2))}


@st.composite
def confidences(draw: st.DrawFn) -> list[list[float]]:
    heads, ranks = draw(st.sampled_from(list(SUBSETS)))
    # Few distinct values make many ties; halves are exact in float32, so that sums compare exactly.
    one = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=16)
    return [sorted(draw(st.lists(one, min_size=ranks, max_size=ranks)), reverse=True) for _ in range(heads)]


@settings(max_examples=60, deadline=None)
@given(confidences())
def test_best_tree_has_the_highest_value_of_its_size(chances: list[list[float]]) -> None:
    made = candidates(chances)
    best: dict[int, float] = defaultdict(float)
    for subset in SUBSETS[made.confidences.shape]:
        best[len(subset)] = max(best[len(subset)], sum(value_of(made, path) for path in subset))
    whole, values = best_tree(made, 99, 99)
    positive = [path for path in max(SUBSETS[made.confidences.shape], key=len) if value_of(made, path) > 0]
    assert len(whole) == len(positive)
    for size in range(len(whole) + 1):
        tree, first = best_tree(made, size, 99)
        assert (tree, first) == (whole.first(size), values[:size])  # a smaller tree is the beginning of a larger one
        assert sum(first) == pytest.approx(best[size], rel=1e-6)
    assert values == sorted(values, reverse=True)
    paths = paths_of(whole)
    assert len(set(paths)) == len(paths)
    assert values == pytest.approx([value_of(made, path) for path in paths], rel=1e-6)


def test_ties_go_to_the_shallower_node_then_to_the_lower_guess_index() -> None:
    tree, values = best_tree(candidates([[0.5, 0.25, 0.25], [0.5, 0.25, 0.0]]), 99, 99)
    assert paths_of(tree) == [(0,), (1,), (2,), (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert values == [0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.0625, 0.0625]


def test_max_depth_floor_and_size_bound_the_best_tree() -> None:
    made = candidates([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert max(best_tree(made, 99, 2)[0].depths) == 2
    assert len(best_tree(made, 99, 0)[0]) == len(best_tree(made, 0, 99)[0]) == 0
    tree, values = best_tree(made, 99, 99, floor=0.25)  # not above the floor is left out
    assert values == [0.5, 0.5] and tree.depths == (1, 1)


def test_tree_has_depths_children_and_prefixes_and_checks_its_parents() -> None:
    tree = Tree(tokens=(7, 8, 7, 9, 7), parents=(-1, 0, 0, 2, -1))
    assert len(tree) == 5 and tree.depths == (1, 2, 2, 3, 1)
    assert tree.children == {-1: {7: 0}, 0: {8: 1, 7: 2}, 2: {9: 3}}  # of equal siblings the first counts
    assert tree.first(2) == Tree((7, 8), (-1, 0)) and tree.first(9) is tree and len(tree.first(0)) == 0
    for parents in ((0,), (-2,), (-1, 1)):
        with pytest.raises(AssertionError):
            Tree(tuple(range(len(parents))), parents)


PATHS = ((1,), (0, 1), (0,), (0, 0, 0), (0, 0), (1, 0))


def test_static_tree_has_the_given_paths_within_size_and_depth() -> None:
    made = candidates([[0.1, 0.1]] * 3)
    assert order_paths(PATHS) == [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    tree = static_tree(made, PATHS, 99, 99)
    assert paths_of(tree) == order_paths(PATHS)
    assert tree == Tree((10, 11, 20, 21, 20, 30), (-1, -1, 0, 0, 1, 2))
    assert paths_of(static_tree(made, PATHS, 99, 2)) == order_paths(PATHS)[:5]
    assert paths_of(static_tree(made, PATHS, 3, 99)) == order_paths(PATHS)[:3]
    assert len(static_tree(made, PATHS, 99, 0)) == 0


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (((0,), (1,), (0,)), r"path \[0\] is listed twice"),
        (((0,), ()), "an empty path"),
        (((0,), (0, 0), (0, 0, 0)), r"path \[0, 0, 0\] is 3 deep, but the model has 2 heads"),
        (((0,), (5,)), r"path \[5\] has an index outside 0\.\.4"),
        (((0,), (0, -1)), r"path \[0, -1\] has an index outside"),
        (((0,), (1, 0)), r"path \[1, 0\] is listed without its parent \[1\]"),
    ],
)
def test_invalid_static_tree_is_refused_naming_the_path(paths: tuple[Path, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=r"speculation\.tree: " + message):
        check_paths(paths, num_heads=2, num_guesses=5)


def test_static_tree_with_parents_in_any_order_is_accepted() -> None:
    check_paths(((0, 0), (0,), (4,)), num_heads=2, num_guesses=5)
    check_paths((), num_heads=2, num_guesses=5)


def test_num_per_depth_counts_the_nodes_of_each_depth() -> None:
    assert Tree((1, 2, 3, 4, 5), (ROOT, ROOT, 0, 1, 3)).num_per_depth == (2, 2, 1)
    assert Tree().num_per_depth == ()


def sequential(seed: int) -> Candidates:
    """Lists of 3 guesses three heads deep; some guesses of the first two heads are followed, and what then."""
    rng = np.random.default_rng(seed)
    tokens, follows = [rng.permutation(9)[:3]], [[NOWHERE] * 3]
    depths = [1]
    for place in range(8):
        for rank in range(3):
            if place < len(tokens) and depths[place] < 3 and rng.random() < 0.6:
                follows[place][rank] = len(tokens)
                tokens.append(rng.permutation(9)[:3])
                follows.append([NOWHERE] * 3)
                depths.append(depths[place] + 1)
    confidences = -np.sort(-rng.random((len(tokens), 3)), axis=1)
    made = Candidates(np.array(tokens), confidences.astype(np.float32), np.array(follows))
    assert made.depths.tolist() == depths
    return made


def nodes_of(made: Candidates) -> dict[Path, float]:
    """Every path of tokens that was drafted, and its value."""
    found: dict[Path, float] = {}
    going = [((), 0, 1.0)]
    while going:
        path, place, value = going.pop()
        for rank, token in enumerate(made.tokens[place]):
            longer = (*path, int(token))
            found[longer] = value * float(made.confidences[place, rank])
            if made.follows is not None and made.follows[place, rank] != NOWHERE:
                going.append((longer, int(made.follows[place, rank]), found[longer]))
    return found


def spelt(tree: Tree) -> list[Path]:
    paths: list[Path] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), token))
    return paths


@pytest.mark.parametrize("seed", range(20))
def test_best_tree_of_path_dependent_guesses_has_the_highest_values(seed: int) -> None:
    """The best nodes of all that was drafted, each list below its own guess; static trees take what is there."""
    made = sequential(seed)
    values = nodes_of(made)
    tree, found = best_tree(made, 12, 99)
    assert found == pytest.approx(sorted(values.values(), reverse=True)[:12], rel=1e-5)
    assert [values[path] for path in spelt(tree)] == pytest.approx(found, rel=1e-5)
    for path in values:
        assert len(made.top_k_indices(path)) == len(path)
        assert made.top_k_indices((*path[:-1], 99)) == made.top_k_indices(path[:-1])
    shape = tuple((a, b, c)[:n] for n in (1, 2, 3) for a in range(3) for b in range(3) for c in range(3))
    everything = static_tree(made, tuple(dict.fromkeys(shape)), 999, 99)
    assert sorted(spelt(everything)) == sorted(values)


@pytest.mark.parametrize("seed", range(5))
def test_forced_prefix_leads_to_what_was_drafted_after_it(seed: int) -> None:
    made = sequential(seed)
    values = nodes_of(made)
    for path in [*values, (99,), (99, 98, 97, 96)]:
        led = made.with_forced_prefix(path)
        below = {longer[len(path) :]: v / values[path] for longer, v in values.items() if longer[: len(path)] == path}
        tree, found = best_tree(led, 999, 99)
        chain = [path[: n + 1] for n in range(len(path))]
        assert spelt(tree)[: len(path)] == chain and found[: len(path)] == [1.0] * len(path)
        beyond = {p[len(path) :]: v for p, v in zip(spelt(tree), found, strict=True) if len(p) > len(path)}
        assert beyond == pytest.approx({p: v for p, v in below.items() if p}, rel=1e-5)


def test_forced_prefix_of_independent_heads_keeps_the_later_heads() -> None:
    led = candidates([[0.5, 0.25], [0.5, 0.25]]).with_forced_prefix((77,))
    tree, values = best_tree(led, 3, 99)
    assert spelt(tree) == [(77,), (77, 20), (77, 21)] and values == [1.0, 0.5, 0.25]
    assert best_tree(candidates([[0.5, 0.25]]).with_forced_prefix((7, 8, 9)), 9, 9)[0] == Tree((7, 8, 9), (-1, 0, 1))


def test_forbidden_token_is_left_out_with_its_subtree_and_costs_no_node() -> None:
    made = candidates([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.5, 0.3, 0.2]])
    free, _ = best_tree(made, 100, 3)
    for forbidden in ((10,), (11, 20), (12, 21, 30), (10, 20)):

        def may(path: Path, forbidden: Path = forbidden) -> bool:
            return path != forbidden

        kept, values = best_tree(made, 100, 3, may_follow=may)
        bad = tuple(token % 10 for token in forbidden)
        expected = [path for path in paths_of(free) if path[: len(bad)] != bad]
        assert sorted(paths_of(kept)) == sorted(expected) and values == sorted(values, reverse=True)
        small, _ = best_tree(made, 4, 3, may_follow=may)
        assert len(small) == 4 and paths_of(small) == paths_of(kept)[:4]
        paths = ((0,), (1,), (0, 0), (1, 0), (1, 0, 0))
        static = static_tree(made, paths, 10, 3, may)
        assert paths_of(static) == [path for path in order_paths(paths) if path[: len(bad)] != bad]


@settings(max_examples=50, deadline=None)
@given(confidences(), st.integers(0, 12))
def test_values_of_equals_the_values_that_best_tree_returned(given_confidences: list[list[float]], size: int) -> None:
    made = candidates(given_confidences)
    tree, values = best_tree(made, size, 9)
    assert values_of(tree, made) == values
