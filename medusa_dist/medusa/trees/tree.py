"""Tree: the draft tokens that one sequence verifies in a step, and how they are chosen.

Owns Tree, its invariants, best-N selection and static trees. Not here: candidates (candidates.py), which
draft tokens are accepted (accept.py), masks and rows (engine/runner/batch_builder.py).
root = the last emitted token, whose KV is not computed yet; it is not a node. Nodes are numbered 0..N-1 in the order of
their rows after the root: parents before children, highest value first.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medusa_dist.errors import ConfigError
from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.medusa.trees.merged import MergedCandidates

ROOT = -1


@dataclass(frozen=True)
class Tree:
    """tokens[i] is drafted below parents[i] (ROOT = -1). A node at depth k was guessed by head k (1 is the first)."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.parents)
        for node, parent in enumerate(self.parents):
            assert ROOT <= parent < node, "parents must come before children"

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of each node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def num_per_depth(self) -> tuple[int, ...]:
        """Number of nodes at depth 1, 2, ..."""
        return tuple(self.depths.count(depth) for depth in range(1, max(self.depths, default=0) + 1))

    @cached_property
    def children(self) -> dict[int, dict[int, int]]:
        """parent -> {token: node}. Of equal siblings the first one counts, which has the highest value."""
        table: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            table.setdefault(parent, {}).setdefault(token, node)
        return table

    def first(self, num_nodes: int) -> "Tree":
        """The tree of its first num_nodes nodes; prefix-closed, since parents come before children."""
        return self if num_nodes >= len(self) else Tree(self.tokens[:num_nodes], self.parents[:num_nodes])


EMPTY = Tree()


def any_path(_path: tuple[int, ...]) -> bool:
    """Allows every path."""
    return True


def best_tree(
    candidates: Candidates | MergedCandidates,
    max_nodes: int,
    max_depth: int,
    floor: float = 0.0,
    may_follow: Callable[[tuple[int, ...]], bool] = any_path,
) -> tuple[Tree, list[float]]:
    """The max_nodes candidates of highest value, and their values in that order.

    A node's value is the product of the confidences on its path: the probability that it is accepted. So the sum of
    values is the expected number of accepted tokens. Values fall along a path, hence the N best nodes always form a
    tree, and best-first search finds them (FasterDecoding/Medusa's sparse trees; here built anew for each step). Ties:
    shallower first, then the lower index.
    Excluded: nodes whose value is not above `floor`, and nodes whose path (the tokens below the root) fails may_follow,
    with their descendants.
    """
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}  # filled only if may_follow asks for them
    asks = may_follow is not any_path
    # A heap entry is a node not yet in the tree: (-value, depth, index in list, parent node, list, value of the
    # parent).
    heap: list[tuple[float, int, int, int, int, float]] = []

    def offer(depth: int, guess_index: int, parent: int, list_index: int, parent_value: float) -> None:
        if depth > max_depth or list_index == NOWHERE:
            return
        confidences = candidates.guesses(list_index)[1]
        if guess_index < len(confidences):
            value = parent_value * confidences[guess_index]
            if value > floor:
                heapq.heappush(heap, (-value, depth, guess_index, parent, list_index, parent_value))

    offer(1, 0, ROOT, 0, 1.0)
    while heap and len(tokens) < max_nodes:
        negative, depth, guess_index, parent, list_index, parent_value = heapq.heappop(heap)
        offer(depth, guess_index + 1, parent, list_index, parent_value)  # the next sibling
        token, node = candidates.guesses(list_index)[0][guess_index], len(tokens)
        if asks:
            path = (*paths[parent], token)
            if not may_follow(path):
                continue
            paths[node] = path
        tokens.append(token)
        parents.append(parent)
        values.append(-negative)
        offer(depth + 1, 0, node, candidates.list_after(list_index, guess_index), -negative)  # the first child
    return Tree(tuple(tokens), tuple(parents)), values


def static_tree(
    candidates: Candidates,
    paths: tuple[tuple[int, ...], ...],
    max_nodes: int,
    max_depth: int,
    may_follow: Callable[[tuple[int, ...]], bool] = any_path,
) -> Tree:
    """The tree of the given paths of guess indices (in Medusa's published form), filled with this step's tokens.

    Excluded: nodes after a guess that has no next list, and nodes whose token path fails may_follow, with their
    descendants.
    """
    # Path of guess indices -> its tokens, its node, and the list after it.
    reached: dict[tuple[int, ...], tuple[tuple[int, ...], int, int]] = {(): ((), ROOT, 0)}
    tokens: list[int] = []
    parents: list[int] = []
    for path in order_paths(paths):
        before, parent, list_index = reached.get(path[:-1], ((), ROOT, NOWHERE))
        if len(path) <= max_depth and len(tokens) < max_nodes and list_index != NOWHERE:
            spelt = (*before, int(candidates.tokens[list_index, path[-1]]))
            if may_follow(spelt):
                reached[path] = spelt, len(tokens), candidates.list_after(list_index, path[-1])
                tokens.append(spelt[-1])
                parents.append(parent)
    return Tree(tuple(tokens), tuple(parents))


def values_of(tree: Tree, candidates: Candidates) -> list[float]:
    """The values, as defined in best_tree, of a tree that was built from these candidates in another way."""
    values: list[float] = []
    lists = {ROOT: 0}
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        list_index = lists[parent]
        guess_index = int(np.flatnonzero(candidates.tokens[list_index] == token)[0])
        values.append(
            (1.0 if parent == ROOT else values[parent]) * float(candidates.confidences[list_index, guess_index])
        )
        lists[node] = candidates.list_after(list_index, guess_index)
    return values


def order_paths(paths: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Paths with parents before children: by depth, sum of indices (more likely first), then lexicographically."""
    return sorted(paths, key=lambda path: (len(path), sum(path), path))


def check_paths(paths: tuple[tuple[int, ...], ...], num_heads: int, num_guesses: int) -> None:
    """Raise ConfigError, with a message for each case, if a static tree cannot be drafted."""
    known = set(paths)
    if len(known) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"speculation.tree: path {list(twice)} is listed twice")
    for path in paths:
        if not path:
            raise ConfigError("speculation.tree: an empty path; the root is implied and must not be listed")
        if len(path) > num_heads:
            raise ConfigError(
                f"speculation.tree: path {list(path)} is {len(path)} deep, but the model has {num_heads} heads"
            )
        if any(not 0 <= guess_index < num_guesses for guess_index in path):
            raise ConfigError(f"speculation.tree: path {list(path)} has an index outside 0..{num_guesses - 1}")
        if len(path) > 1 and path[:-1] not in known:
            raise ConfigError(
                f"speculation.tree: path {list(path)} is listed without its parent {list(path[:-1])}; add the parent"
            )
