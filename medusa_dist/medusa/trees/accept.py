"""Which drafted tokens survive.

Owns the acceptance rules. Not here: drafting (draft.py), how the model's own choice is made (ops/sampling.py, where the
noise makes it a sample), KV rows (engine/state/block_pool.py).
root = last emitted token, its KV not computed yet; accepted = the path below the root that the model itself chooses;
bonus = the model's own token after that path. A step emits accepted + bonus: never zero tokens.

The exact rule: at a node, take the model's choice; if a child holds that token go there, else emit it and stop. Only
the model's choices are ever emitted, each made from the logits of a verified prefix with noise that depends on position
and seed alone. So the output is the non-speculative output, whatever the tree ("target-only" verification; with shared
noise it accepts as often as rejection sampling does).

The typical rule (Cai et al. 2024, Medusa, section 3.3.1) is lossy, and served only where it is asked for: a drafted
token x survives below a surviving parent if p(x) > min(epsilon, delta * exp(-H(p))), p the model's distribution there
after temperature and filters and H its entropy. The longest surviving path is emitted, the likelier of equally long
ones, and behind it one token by the model's own choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medusa_dist.medusa.trees.tree import ROOT, Tree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The walk through one tree: accepted nodes from the root down, and the tokens emitted (accepted + bonus)."""

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def last_node(self) -> int:
        """The deepest accepted node; ROOT if none."""
        return self.nodes[-1] if self.nodes else ROOT


# Where a walk stands: (tree index, node, tokens emitted so far in this step).
Frontier = tuple[int, int, tuple[int, ...]]


def accept(trees: Sequence[Tree], choose: Callable[[list[Frontier]], Sequence[int]]) -> list[Accepted]:
    """Walk all trees level by level, by the model's own choices.

    choose is asked once a level, for all walks still going on: given (tree, node, tokens chosen in this step so far)
    it returns the token that the model chooses after that node, so fields that look at a path (penalties, grammar)
    see the right one.
    """
    paths: list[list[int]] = [[] for _ in trees]
    emitted: list[tuple[int, ...]] = [() for _ in trees]
    going = [(index, ROOT) for index in range(len(trees))]
    while going:
        stands = [(index, node, emitted[index]) for index, node in going]
        onward = []
        for (index, node), token in zip(going, choose(stands), strict=True):
            emitted[index] += (token,)
            child = trees[index].children.get(node, {}).get(token)
            if child is not None:
                paths[index].append(child)
                onward.append((index, child))
        going = onward
    return [Accepted(tuple(path), tokens) for path, tokens in zip(paths, emitted, strict=True)]


@dataclass(frozen=True, slots=True)
class Weights:
    """What the typical rule asks of a place: log p of the tokens drafted behind it, and the entropy of p in nats."""

    log_p: Mapping[int, float]
    entropy: float

    def passes(self, token: int, epsilon: float, delta: float) -> bool:
        """Whether that drafted token is typical here."""
        return self.log_p[token] > min(math.log(epsilon), math.log(delta) - self.entropy)


def accept_typical(
    trees: Sequence[Tree],
    bounds: Sequence[tuple[float, float]],
    weigh: Callable[[list[Frontier]], Sequence[Weights]],
    choose: Callable[[list[Frontier]], Sequence[int]],
) -> list[Accepted]:
    """The longest typical path of each tree, then the model's own choice. bounds: (epsilon, delta) of each tree.

    weigh is asked once a level, for all surviving nodes that have children; choose once, for the ends of the paths.
    """
    # tree -> surviving node -> (path of nodes, path of tokens, log p of the path)
    survivors: list[dict[int, tuple[tuple[int, ...], tuple[int, ...], float]]] = [{ROOT: ((), (), 0.0)} for _ in trees]
    going = [(index, ROOT) for index, tree in enumerate(trees) if len(tree)]
    while going:
        stands = [(index, node, survivors[index][node][1]) for index, node in going]
        onward = []
        for (index, node), weights in zip(going, weigh(stands), strict=True):
            nodes, tokens, likelihood = survivors[index][node]
            for token, child in trees[index].children[node].items():
                if weights.passes(token, *bounds[index]):
                    path = ((*nodes, child), (*tokens, token), likelihood + weights.log_p[token])
                    survivors[index][child] = path
                    if child in trees[index].children:
                        onward.append((index, child))
        going = onward
    # Equally long and likely: the first node, which is the more promising.
    best = [max(found.items(), key=lambda item: (len(item[1][0]), item[1][2], -item[0])) for found in survivors]
    bonus = choose([(index, node, tokens) for index, (node, (_, tokens, _)) in enumerate(best)])
    return [Accepted(nodes, (*tokens, token)) for (_, (nodes, tokens, _)), token in zip(best, bonus, strict=True)]
