"""Acceptance against a naive recursion, on random trees with equal siblings."""

import random

import pytest

from medusa_dist.medusa.accept import Accepted, Stand, accept
from medusa_dist.medusa.tree import EMPTY, ROOT, Tree


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
def test_equals_a_naive_recursion(seed: int) -> None:
    rng = random.Random(seed)
    trees = [random_tree(rng, rng.choice([0, 1, 4, 12, 30])) for _ in range(7)]
    levels: list[list[Stand]] = []

    def choose(stands: list[Stand]) -> list[int]:
        levels.append(stands)
        return [model(index, path) for index, _, path in stands]

    got = accept(trees, choose)
    assert got == [naive(tree, index) for index, tree in enumerate(trees)]
    for level, stands in enumerate(levels):  # one question a level, for all walks still going on
        assert all(len(path) == level for *_, path in stands)
        for index, node, path in stands:
            assert path == got[index].tokens[:level] and node == (ROOT, *got[index].nodes)[level]
    assert len(levels) == max(len(one.tokens) for one in got)


def test_every_step_emits_accepted_and_bonus() -> None:
    chain = Tree((5, 6, 7), (-1, 0, 1))
    answers = {(): 5, (5,): 6, (5, 6): 7, (5, 6, 7): 8}
    (got,) = accept([chain], lambda stands: [answers[path] for *_, path in stands])
    assert got == Accepted((0, 1, 2), (5, 6, 7, 8)) and got.last_node == 2
    answers[(5,)] = 9
    (got,) = accept([chain], lambda stands: [answers[path] for *_, path in stands])
    assert got == Accepted((0,), (5, 9)) and got.last_node == 0
    (got,) = accept([EMPTY], lambda stands: [4])
    assert got == Accepted((), (4,)) and got.last_node == ROOT


def test_a_branch_that_is_not_the_first() -> None:
    tree = Tree((1, 2, 9, 3, 3), (-1, -1, 0, 1, 3))  # 1 -> 9, 2 -> 3 -> 3
    answers = {(): 2, (2,): 3, (2, 3): 3, (2, 3, 3): 0}
    (got,) = accept([tree], lambda stands: [answers[path] for *_, path in stands])
    assert got == Accepted((1, 3, 4), (2, 3, 3, 0))


def test_no_trees() -> None:
    assert accept([], lambda stands: []) == []
