import random
from itertools import product

import numpy as np
import pytest

from medusa_dist.medusa.trees.candidates import NO_TOKEN, NOWHERE, Candidates
from medusa_dist.medusa.trees.merged import MergedCandidates, drafters_of, mix_in_order
from medusa_dist.medusa.trees.tree import Tree, best_tree

HEADS = Candidates(np.array([[1, 2], [3, 4]]), np.array([[0.5, 0.2], [0.4, 0.3]], dtype=np.float32))
LOOKUP = Candidates(
    np.array([[1, 9], [4, NO_TOKEN], [7, NO_TOKEN]]),
    np.array([[0.3, 0.1], [0.6, 0.0], [0.9, 0.0]], dtype=np.float32),
    np.array([[1, NOWHERE], [2, NOWHERE], [NOWHERE, NOWHERE]]),
)


def random_candidates(rng: random.Random, depth: int = 3) -> Candidates:
    """Lists that follow each other in a random tree, of tokens 0 to 5."""
    ids, chances, follows = [], [], []
    queue = [(1, None)]
    for level, above in queue:
        if above is not None:
            follows[above[0]][above[1]] = len(ids)
        ids.append(rng.sample(range(6), 3))
        chances.append(sorted((rng.random() / 3 for _ in range(3)), reverse=True))
        follows.append([NOWHERE] * 3)
        queue += [(level + 1, (len(ids) - 1, i)) for i in range(3) if level < depth and rng.random() < 0.6]
    return Candidates(np.array(ids), np.array(chances, dtype=np.float32), np.array(follows))


def value_of(path: tuple[int, ...], parts: list[Candidates]) -> float:
    """Product over the path of what the first drafter believes, and of what it leaves to the second."""
    places, value = [0] * len(parts), 1.0
    for token in path:
        chance, left = 0.0, 1.0
        for part, place in zip(parts, places, strict=True):
            if place != NOWHERE:
                index = part.index_of(place, token)
                chance += left * float(part.confidences[place, index]) if index != NOWHERE else 0.0
                left *= 1.0 - float(part.confidences[place].sum())
        value *= chance
        places = [part.list_after_token(place, token) for part, place in zip(parts, places, strict=True)]
    return value


@pytest.mark.parametrize("seed", range(20))
def test_best_tree_of_several_drafters_is_that_of_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    parts = [random_candidates(rng), random_candidates(rng)]
    tree, values = best_tree(MergedCandidates(parts), 12, 3)
    every = {p: value_of(p, parts) for depth in (1, 2, 3) for p in product(range(6), repeat=depth)}
    best = sorted((v for v in every.values() if v > 0), reverse=True)[:12]
    assert values == pytest.approx(best, rel=1e-5)
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        paths[node] = (*paths[parent], token)
        assert values[node] == pytest.approx(every[paths[node]], rel=1e-5)


def test_second_drafter_shares_what_the_first_leaves() -> None:
    tree, values = best_tree(MergedCandidates([LOOKUP, HEADS]), 3, 3)
    assert tree == Tree((1, 4, 7), (-1, 0, 1))
    # 1: 0.3, and 0.5 of the 0.6 that are left. Behind it, 4: 0.6, and 0.3 of 0.4. The 7 is known to lookup alone.
    assert values == pytest.approx([0.6, 0.6 * 0.72, 0.6 * 0.72 * 0.9])


def test_sure_drafter_leaves_nothing_to_the_others() -> None:
    assert mix_in_order([([1], [1.0]), ([1, 2], [0.4, 0.3])]) == ([1, 2], [1.0, 0.0])


def test_lists_of_one_drafter_are_unchanged() -> None:
    assert best_tree(MergedCandidates([HEADS]), 6, 2) == best_tree(HEADS, 6, 2)
    assert mix_in_order([([1, 2], [0.9, 0.8])]) == ([1, 2], [0.9, 0.8])


def test_every_node_knows_who_guessed_it() -> None:
    tree, _ = best_tree(MergedCandidates([HEADS, LOOKUP]), 20, 3)
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        paths[node] = (*paths[parent], token)
    names = drafters_of(tree.tokens, tree.parents, {"heads": HEADS, "lookup": LOOKUP})
    found = {paths[node]: who for node, who in enumerate(names)}
    assert found == {
        (1,): ("heads", "lookup"),
        (2,): ("heads",),
        (9,): ("lookup",),
        (1, 4): ("heads", "lookup"),
        (1, 3): ("heads",),
        (2, 3): ("heads",),
        (2, 4): ("heads",),
        (9, 3): ("heads",),
        (9, 4): ("heads",),
        (1, 4, 7): ("lookup",),
    }
    assert drafters_of([50], [-1], {"heads": HEADS}) == [()], "forced by a grammar"
