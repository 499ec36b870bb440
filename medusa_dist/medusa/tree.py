"""The candidate tree: what is drafted for one sequence in one step, and how it is chosen.

Owns Tree, its laws, the best-N rule and static trees. Not here: where scores come from (draft.py), which drafted
tokens survive (accept.py), masks and KV rows (engine/prepare.py).
root = the last emitted token, whose KV is not computed yet; it is not a node. Nodes are numbered 0..N-1 in the order
their rows are laid out behind the root: parents before children, most promising first.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medusa_dist.errors import ConfigError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
ROOT = -1


@dataclass(frozen=True)
class Tree:
    """tokens[i] is drafted below parents[i] (ROOT = -1). A node at depth k was guessed by head k (1 is the first)."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.parents)
        assert all(ROOT <= parent < node for node, parent in enumerate(self.parents)), "parents come before children"

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of each node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @property
    def num_per_depth(self) -> tuple[int, ...]:
        """How many nodes there are at depth 1, 2, ..."""
        return tuple(self.depths.count(depth) for depth in range(1, max(self.depths, default=0) + 1))

    @cached_property
    def children(self) -> dict[int, dict[int, int]]:
        """parent -> {token: node}. Among equal siblings the first, most promising one counts."""
        table: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            table.setdefault(parent, {}).setdefault(token, node)
        return table

    def first(self, num_nodes: int) -> "Tree":
        """The tree of its first num_nodes nodes; prefix-closed, since parents come before children."""
        return self if num_nodes >= len(self) else Tree(self.tokens[:num_nodes], self.parents[:num_nodes])


EMPTY = Tree()


@dataclass(frozen=True)
class Candidates:
    """What the heads guess after one sequence's root: per head, tokens by falling score and how likely each is right.

    tokens, confidences: [heads, K]; confidences[k, r] stands for the chance that the r-th guess of head k + 1 is the
    model's own choice, given that its parent is: the head's word, or what calibrate.py makes of it.
    """

    tokens: Ints
    confidences: Floats

    def led_by(self, tokens: Sequence[int]) -> "Candidates":
        """These guesses, but `tokens` for certain at the first depths, and deeper than the heads if they are more."""
        num_heads, num_ranks = self.tokens.shape
        shape = (max(num_heads, len(tokens)), num_ranks)
        led = Candidates(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32))
        led.tokens[:num_heads], led.confidences[:num_heads] = self.tokens, self.confidences
        led.tokens[: len(tokens), 0] = tokens
        led.confidences[: len(tokens)] = np.eye(1, num_ranks, dtype=np.float32)
        return led


def any_path(_path: tuple[int, ...]) -> bool:
    """Forbids nothing."""
    return True


def best_tree(
    candidates: Candidates,
    max_nodes: int,
    max_depth: int,
    floor: float = 0.0,
    may_follow: Callable[[tuple[int, ...]], bool] = any_path,
) -> tuple[Tree, list[float]]:
    """The max_nodes candidates of highest value, and their values in that order.

    A node's value is the product of the confidences on its path: the chance that it is accepted, so the sum of values
    is the expected number of accepted tokens. Values fall along a path, hence the N best nodes always form a tree and
    best-first search finds them (FasterDecoding/Medusa's sparse trees; here for each step anew). Ties: shallower first,
    then the lower rank. Left out: nodes whose value is not above `floor`, and those whose path (the tokens below the
    root) may not follow, with all that is below them.
    """
    num_heads, num_ranks = candidates.tokens.shape
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}
    # A heap entry is a node not yet in the tree: (-value, depth, rank, parent node, value of the parent).
    heap: list[tuple[float, int, int, int, float]] = []

    def offer(depth: int, rank: int, parent: int, parent_value: float) -> None:
        if depth <= min(num_heads, max_depth) and rank < num_ranks:
            value = parent_value * float(candidates.confidences[depth - 1, rank])
            if value > floor:
                heapq.heappush(heap, (-value, depth, rank, parent, parent_value))

    offer(1, 0, ROOT, 1.0)
    while heap and len(tokens) < max_nodes:
        negative, depth, rank, parent, parent_value = heapq.heappop(heap)
        offer(depth, rank + 1, parent, parent_value)  # the next sibling
        path = (*paths[parent], int(candidates.tokens[depth - 1, rank]))
        if not may_follow(path):
            continue
        node = len(tokens)
        paths[node] = path
        tokens.append(path[-1])
        parents.append(parent)
        values.append(-negative)
        offer(depth + 1, 0, node, -negative)  # the first child
    return Tree(tuple(tokens), tuple(parents)), values


def static_tree(
    candidates: Candidates,
    paths: tuple[tuple[int, ...], ...],
    max_nodes: int,
    max_depth: int,
    may_follow: Callable[[tuple[int, ...]], bool] = any_path,
) -> Tree:
    """The tree of the given paths of ranks (as Medusa publishes them), filled with this step's tokens.

    Left out: nodes whose path of tokens may not follow, with all that is below them.
    """
    place: dict[tuple[int, ...], int] = {(): ROOT}
    tokens: list[int] = []
    parents: list[int] = []
    for path in order_paths(paths):
        if len(path) <= max_depth and len(tokens) < max_nodes and path[:-1] in place:
            spelt = tuple(int(candidates.tokens[depth, rank]) for depth, rank in enumerate(path))
            if may_follow(spelt):
                place[path] = len(tokens)
                tokens.append(spelt[-1])
                parents.append(place[path[:-1]])
    return Tree(tuple(tokens), tuple(parents))


def order_paths(paths: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Paths with parents before children: by depth, then by the sum of ranks (the likelier first), then as they are."""
    return sorted(paths, key=lambda path: (len(path), sum(path), path))


def check_paths(paths: tuple[tuple[int, ...], ...], num_heads: int, num_ranks: int) -> None:
    """Raise ConfigError if a static tree cannot be drafted: each breach has its own message."""
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
        if any(not 0 <= rank < num_ranks for rank in path):
            raise ConfigError(f"speculation.tree: path {list(path)} has a rank outside 0..{num_ranks - 1}")
        if len(path) > 1 and path[:-1] not in known:
            raise ConfigError(
                f"speculation.tree: path {list(path)} is listed without its parent {list(path[:-1])}; add the parent"
            )
