"""Which drafted tokens survive.

Owns the acceptance rule. Not here: drafting (draft.py), how the model's own choice is made (ops/sampling.py, where the
noise makes it a sample), KV rows (engine/kv_cache.py).
root = last emitted token, its KV not computed yet; accepted = the path below the root that the model itself chooses;
bonus = the model's own token after that path. A step emits accepted + bonus: never zero tokens.

The rule: at a node, take the model's choice; if a child holds that token go there, else emit it and stop. Only the
model's choices are ever emitted, each made from the logits of a verified prefix with noise that depends on position
and seed alone. So the output is the non-speculative output, whatever the tree ("target-only" verification; with shared
noise it accepts as often as rejection sampling does).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medusa_dist.medusa.tree import ROOT, Tree


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
Stand = tuple[int, int, tuple[int, ...]]


def accept(trees: Sequence[Tree], choose: Callable[[list[Stand]], Sequence[int]]) -> list[Accepted]:
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
