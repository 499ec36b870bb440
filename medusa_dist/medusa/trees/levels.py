"""Drafting level by level: the best guesses of each level, and which of them are extended.

Owns which guesses go on, and the book-keeping of lists that follow each other. Pure. Not here: the networks that guess
(medusa/heads/sequential.py, medusa/eagle3/expansion.py), the tree chosen from all guesses (tree.py).
The best paths by joint confidence are extended (EAGLE-2, arXiv 2406.16858), so a level costs the same whatever the
vocabulary.
Shapes: B sequences, M paths of each at a level, R guesses per list, L lists, K levels, D tokens the heads know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_dist.config import Paths
from medusa_dist.medusa.trees.candidates import NOWHERE
from medusa_dist.medusa.trees.draft import guess

FOLLOWED = (3, 2, 1)  # guesses per sequence that are extended at depth 1, 2, ...; beyond: 1
LEAST = 0.08  # confidence of a path below which extending it costs more than it can gain


@dataclass(frozen=True)
class Lists:
    """Guesses of B sequences as L lists each, laid out like tree.Candidates: all [B, L, R].

    columns: of the draft vocabulary.
    """

    columns: Tensor
    confidences: Tensor
    follows: Tensor


class Growth:
    """Which guesses are extended: the inner paths of a static tree, or the most likely paths at each depth."""

    def __init__(
        self,
        num_heads: int,
        num_guesses: int,
        static: Paths | None = None,
        least: float = LEAST,
        followed: Sequence[int] = FOLLOWED,
    ) -> None:
        """static: the tree's paths of guess indices; None: `followed` decides, how many guesses are extended at depth
        1, 2, ...; beyond, as many as at the last. least: confidence to extend a path."""
        self._least = least
        self._fixed: list[list[int]] | None = None
        self.counts: list[int] = []  # number of guesses extended at each depth
        if static is None:
            for depth in range(num_heads - 1):
                count = followed[min(depth, len(followed) - 1)]
                self.counts.append(min(count, (self.counts[-1] if self.counts else 1) * num_guesses))
            return
        inner = sorted({path[:-1] for path in static if len(path) > 1}, key=lambda path: (len(path), path))
        layers: list[list[tuple[int, ...]]] = [[()]]
        self._fixed = []
        for depth in range(1, num_heads):
            layer = [path for path in inner if len(path) == depth]
            self._fixed.append([layers[-1].index(path[:-1]) * num_guesses + path[-1] for path in layer])
            layers.append(layer)
        self.counts = [len(places) for places in self._fixed]

    def goes_on(self, depth: int, values: Tensor) -> bool:
        """Whether to draft after guesses of these values at this depth; a static tree must be drafted completely."""
        if not self.counts[depth]:
            return False
        # On a GPU one more round is cheaper than waiting for the value.
        return self._fixed is not None or values.device.type != "cpu" or float(values.max()) >= self._least

    def pick(self, depth: int, values: Tensor) -> Tensor:
        """values: [B, M * R] of all guesses at this depth (0 is the first) -> [B, count] indices of those to extend."""
        if self._fixed is None:
            return values.topk(self.counts[depth], dim=-1).indices
        picked = torch.tensor(self._fixed[depth], dtype=torch.int64, device=values.device)
        return picked.expand(values.shape[0], -1)


@dataclass(frozen=True)
class Extended:
    """Guesses that the next level goes on from. parents: [B, M'], the path of this level each one extends. columns:
    [B, M'] of the draft vocabulary."""

    parents: Tensor
    columns: Tensor

    def rows(self, num_paths: int) -> Tensor:
        """[B * M']: the parents' rows among B * num_paths rows of this level."""
        firsts = torch.arange(len(self.parents), device=self.parents.device)[:, None] * num_paths
        return (self.parents + firsts).flatten()


class Levels:
    """The lists made so far. chance: as for guess(), temperatures [B], and noise [B, K, D] or None."""

    def __init__(self, growth: Growth, num_levels: int, chance: tuple[Tensor, Tensor | None]) -> None:
        self._growth, self._num_levels = growth, num_levels
        self._temperatures, self._noise = chance
        self._values: Tensor | None = None  # joint confidence of the paths that go on: [B, M, 1]
        self._made: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_lists = 1

    def add(self, logits: Tensor) -> Extended | None:
        """The next level's guesses. logits: [B * M, D], of the paths that go on. None: this was the last level."""
        size, depth = len(self._temperatures), len(self._made)
        noise = None if self._noise is None else self._noise[:, depth, None]
        columns, confidences = guess(logits.view(size, -1, logits.shape[-1]), self._temperatures, noise)
        follows = torch.full_like(columns, NOWHERE)
        self._made.append((columns, confidences, follows))
        values = (confidences if self._values is None else self._values * confidences).flatten(1)
        if depth + 1 == self._num_levels or not self._growth.goes_on(depth, values):
            return None
        picked = self._growth.pick(depth, values)  # [B, M']
        count = picked.shape[1]
        lists = torch.arange(self._num_lists, self._num_lists + count, device=picked.device)
        follows.view(size, -1).scatter_(1, picked, lists.expand_as(picked))
        self._num_lists += count
        self._values = values.gather(1, picked)[:, :, None]
        return Extended(picked // columns.shape[-1], columns.flatten(1).gather(1, picked))

    def lists(self) -> Lists:
        """All guesses made."""
        return Lists(*(torch.cat(parts, dim=1) for parts in zip(*self._made, strict=True)))
