"""Acceptance rules: which draft tokens of a verified tree are accepted.

Owns the exact and the typical rule. Not here: drafting (draft.py), how the model's own choice is made (ops/sampling.py,
ops/noise.py), KV blocks (engine/state/block_pool.py).
root = last emitted token, its KV not computed yet; accepted = the path below the root that the model itself chooses;
bonus = the model's own token after that path. A step emits accepted + bonus tokens: at least one.

Exact rule: at each node, take the model's choice; if a child holds that token, go there, else emit the token and stop.
Only the model's choices are emitted, each made from the logits of a verified prefix with noise that depends only on
position and seed. So the output equals the output without speculation, whatever the tree ("target-only" verification;
with shared noise it accepts as often as rejection sampling).

Typical rule (Cai et al. 2024, Medusa, section 3.3.1): lossy, used only on request. A draft token x below an accepted
parent is accepted if p(x) > min(epsilon, delta * exp(-H(p))), where p is the model's distribution there after
temperature and filters, and H its entropy. The longest accepted path is emitted (the more likely one of equally long
paths), then one token of the model's own choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medusa_dist.medusa.trees.tree import ROOT, Tree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of one tree: accepted nodes from the root down, and the emitted tokens (accepted + bonus)."""

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def last_node(self) -> int:
        """The deepest accepted node; ROOT if none."""
        return self.nodes[-1] if self.nodes else ROOT


# Position of a traversal: (tree index, node, tokens emitted so far in this step).
Frontier = tuple[int, int, tuple[int, ...]]


def accept(trees: Sequence[Tree], choose: Callable[[list[Frontier]], Sequence[int]]) -> list[Accepted]:
    """Traverse all trees level by level, following the model's own choices.

    choose is called once per level for all active traversals: given (tree, node, tokens chosen so far in this step) it
    returns the token that the model chooses after that node. So fields that depend on the path (penalties, grammar) see
    the right one.
    """
    paths: list[list[int]] = [[] for _ in trees]
    emitted: list[tuple[int, ...]] = [() for _ in trees]
    active = [(index, ROOT) for index in range(len(trees))]
    while active:
        frontiers = [(index, node, emitted[index]) for index, node in active]
        next_active = []
        for (index, node), token in zip(active, choose(frontiers), strict=True):
            emitted[index] += (token,)
            child = trees[index].children.get(node, {}).get(token)
            if child is not None:
                paths[index].append(child)
                next_active.append((index, child))
        active = next_active
    return [Accepted(tuple(path), tokens) for path, tokens in zip(paths, emitted, strict=True)]


@dataclass(frozen=True, slots=True)
class Weights:
    """Inputs of the typical rule at one node: log p of the tokens drafted after it, and the entropy of p in nats."""

    log_p: Mapping[int, float]
    entropy: float

    def passes(self, token: int, epsilon: float, delta: float) -> bool:
        """Whether that draft token is typical here."""
        return self.log_p[token] > min(math.log(epsilon), math.log(delta) - self.entropy)


def accept_typical(
    trees: Sequence[Tree],
    bounds: Sequence[tuple[float, float]],
    weigh: Callable[[list[Frontier]], Sequence[Weights]],
    choose: Callable[[list[Frontier]], Sequence[int]],
) -> list[Accepted]:
    """The longest typical path of each tree, then the model's own choice. bounds: (epsilon, delta) of each tree.

    weigh is called once per level, for all accepted nodes that have children; choose is called once, for the ends of
    the paths.
    """
    # tree -> accepted node -> (path of nodes, path of tokens, log p of the path)
    survivors: list[dict[int, tuple[tuple[int, ...], tuple[int, ...], float]]] = [{ROOT: ((), (), 0.0)} for _ in trees]
    active = [(index, ROOT) for index, tree in enumerate(trees) if len(tree)]
    while active:
        frontiers = [(index, node, survivors[index][node][1]) for index, node in active]
        next_active = []
        for (index, node), weights in zip(active, weigh(frontiers), strict=True):
            nodes, tokens, likelihood = survivors[index][node]
            for token, child in trees[index].children[node].items():
                if weights.passes(token, *bounds[index]):
                    path = ((*nodes, child), (*tokens, token), likelihood + weights.log_p[token])
                    survivors[index][child] = path
                    if child in trees[index].children:
                        next_active.append((index, child))
        active = next_active
    # Ties in length and probability: the first node, which has the higher value.
    best = [max(found.items(), key=lambda item: (len(item[1][0]), item[1][2], -item[0])) for found in survivors]
    bonus = choose([(index, node, tokens) for index, (node, (_, tokens, _)) in enumerate(best)])
    return [Accepted(nodes, (*tokens, token)) for (_, (nodes, tokens, _)), token in zip(best, bonus, strict=True)]
