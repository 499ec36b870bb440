"""Acceptance against a naive recursion, on random trees with equal siblings; typical acceptance against all paths."""

import math
import random

import pytest

from medusa_dist.medusa.trees.accept import Accepted, Frontier, Weights, accept, accept_typical
from medusa_dist.medusa.trees.tree import EMPTY, ROOT, Tree


def model(seed: int, path: tuple[int, ...], vocab: int = 3) -> int:
    """What a model without any memory but its tokens chooses."""
    return random.Random(hash((seed, *path))).randrange(vocab)


def naive(tree: Tree, seed: int, node: int = ROOT, path: tuple[int, ...] = ()) -> Accepted:
    """Ask the model; follow the first child that holds its answer."""
    token = model(seed, path)
    for child, (parent, drafted) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        if parent == node and drafted == token:
            below = naive(tree, seed, child, (*path, token))
            return Accepted((child, *below.nodes), (token, *below.tokens))
    return Accepted((), (token,))


def random_tree(rng: random.Random, size: int) -> Tree:
    return Tree(
        tuple(rng.randrange(3) for _ in range(size)),
        tuple(rng.choice([ROOT, node - 1, rng.randrange(-1, node)]) if node else ROOT for node in range(size)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_acceptance_equals_a_naive_recursion(seed: int) -> None:
    rng = random.Random(seed)
    trees = [random_tree(rng, rng.choice([0, 1, 4, 12, 30])) for _ in range(7)]
    levels: list[list[Frontier]] = []

    def choose(stands: list[Frontier]) -> list[int]:
        levels.append(stands)
        return [model(index, path) for index, _, path in stands]

    got = accept(trees, choose)
    assert got == [naive(tree, index) for index, tree in enumerate(trees)]
    for level, stands in enumerate(levels):  # one question a level, for all walks still going on
        assert all(len(path) == level for *_, path in stands)
        for index, node, path in stands:
            assert path == got[index].tokens[:level] and node == (ROOT, *got[index].nodes)[level]
    assert len(levels) == max(len(one.tokens) for one in got)


def test_every_step_emits_accepted_tokens_and_a_bonus_token() -> None:
    chain = Tree((5, 6, 7), (-1, 0, 1))
    answers = {(): 5, (5,): 6, (5, 6): 7, (5, 6, 7): 8}
    (got,) = accept([chain], lambda stands: [answers[path] for *_, path in stands])
    assert got == Accepted((0, 1, 2), (5, 6, 7, 8)) and got.last_node == 2
    answers[(5,)] = 9
    (got,) = accept([chain], lambda stands: [answers[path] for *_, path in stands])
    assert got == Accepted((0,), (5, 9)) and got.last_node == 0
    (got,) = accept([EMPTY], lambda stands: [4])
    assert got == Accepted((), (4,)) and got.last_node == ROOT


def test_acceptance_follows_a_branch_that_is_not_the_first() -> None:
    tree = Tree((1, 2, 9, 3, 3), (-1, -1, 0, 1, 3))  # 1 -> 9, 2 -> 3 -> 3
    answers = {(): 2, (2,): 3, (2, 3): 3, (2, 3, 3): 0}
    (got,) = accept([tree], lambda stands: [answers[path] for *_, path in stands])
    assert got == Accepted((1, 3, 4), (2, 3, 3, 0))


def test_acceptance_of_no_trees_is_empty() -> None:
    assert accept([], lambda stands: []) == []


# --- the typical rule ---


def distribution(seed: int, path: tuple[int, ...]) -> list[float]:
    """p over three tokens; now and then flat, or with a token that is impossible."""
    rng = random.Random(f"p{seed}{path}")  # not a hash: those of texts differ from process to process
    raw = rng.choice([[1.0, 1.0, 1.0], [rng.random() ** 4 for _ in range(3)], [rng.random(), 0.0, rng.random()]])
    return [x / sum(raw) for x in raw]


def log(x: float) -> float:
    return math.log(x) if x else -math.inf


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x)


def brute_force(tree: Tree, seed: int, epsilon: float, delta: float) -> Accepted:
    """Every path from the root, judged on its own by the rule as it is written."""
    paths: list[tuple[int, ...]] = [()]
    for node, parent in enumerate(tree.parents):
        first_of_equals = tree.children[parent][tree.tokens[node]] == node
        above = next((path for path in paths if (path[-1] if path else ROOT) == parent), None)
        if above is not None and first_of_equals:
            paths.append((*above, node))
    good = []
    for path in paths:
        tokens = tuple(tree.tokens[node] for node in path)
        spots = [distribution(seed, tokens[:i]) for i in range(len(path))]
        if all(p[t] > min(epsilon, delta * math.exp(-entropy(p))) for p, t in zip(spots, tokens, strict=True)):
            good.append((len(path), sum(log(p[t]) for p, t in zip(spots, tokens, strict=True)), path, tokens))
    longest = [each for each in good if each[0] == max(g[0] for g in good)]
    likeliest = [each for each in longest if each[1] == max(g[1] for g in longest)]
    *_, nodes, tokens = min(likeliest, key=lambda each: each[2][-1:] or (ROOT,))
    return Accepted(nodes, (*tokens, model(seed, tokens)))


@pytest.mark.parametrize("seed", range(40))
def test_typical_acceptance_equals_brute_force_over_all_paths(seed: int) -> None:
    rng = random.Random(seed)
    trees = [random_tree(rng, rng.choice([0, 1, 4, 12, 30])) for _ in range(7)]
    bounds = [(rng.choice([0.09, 0.5, 0.9]), rng.choice([0.3, 1.0, 2.0])) for _ in trees]
    num_questions = 0

    def weigh(stands: list[Frontier]) -> list[Weights]:
        nonlocal num_questions
        num_questions += 1
        assert len({len(path) for *_, path in stands}) == 1
        made = []
        for index, node, path in stands:
            p = distribution(index, path)
            made.append(Weights({t: log(p[t]) for t in trees[index].children[node]}, entropy(p)))
        return made

    got = accept_typical(trees, bounds, weigh, lambda stands: [model(index, path) for index, _, path in stands])
    assert got == [brute_force(tree, i, *bound) for i, (tree, bound) in enumerate(zip(trees, bounds, strict=True))]
    assert num_questions <= max(max(tree.depths, default=0) for tree in trees)
    assert sum(len(one.nodes) for one in got) > 0


def test_typical_bound_falls_with_the_models_entropy() -> None:
    sure, unsure = [0.95, 0.05], [0.25, 0.25, 0.25, 0.25]
    assert Weights({1: log(0.05)}, entropy(sure)).passes(1, 0.09, 0.3) is False
    assert Weights({0: log(0.95)}, entropy(sure)).passes(0, 0.09, 0.3)
    # Four equal tokens: exp(-H) is a quarter, the bound 0.075.
    assert Weights({3: log(0.25), 4: log(0.07)}, entropy(unsure)).passes(3, 0.09, 0.3)
    assert not Weights({4: log(0.07)}, entropy(unsure)).passes(4, 0.09, 0.3)


def test_typical_acceptance_without_drafts_emits_the_bonus_token() -> None:
    assert accept_typical([], [], lambda stands: [], lambda stands: []) == []
    assert accept_typical([EMPTY], [(0.09, 0.3)], lambda stands: [], lambda stands: [4]) == [Accepted((), (4,))]
