"""Draft trees for the beams of one search: a beam search over the heads' guesses.

Owns the verification order of a group's guesses, and the learned probability that a level completes. Pure. Not here:
the guesses (engine/beam/beam_drafter.py), how many are verified (medusa/trees/budget.py), the search (search.py).
A level of W beams advances only if all of its W winners were verified. So guesses are not ranked beam by beam: at each
depth, all beams' guesses are in one order, by the score that the search itself uses: the beam's score plus the sum of
log confidences. If the worst winner is number r in that order, the first r guesses complete the level. How often the
first c W do is learned (`Completion`), and the budget adds whole runs of c W guesses, each valued by the tokens it is
expected to gain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.medusa.trees.tree import ROOT, Tree

WIDTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # c: runs of guesses end at c W
FOLLOWED = (2, 1)  # multiples of W: guesses extended at depth 1, 2, ...; the last one applies beyond
# Initial probabilities that the first c W guesses contain all winners, near those of the demo heads: at depth 1, and
# deeper if the levels before were complete.
_FIRST = (0.25, 0.36, 0.42, 0.48, 0.54, 0.58)
_DEEPER = (0.18, 0.27, 0.31, 0.36, 0.41, 0.44)
_SEEN = 16  # weight of these, in levels
_MEMORY = 128  # levels in the moving average
_FADING = 0.002  # decay per step without drafts towards the initial values, so that drafting is tried again
MAX_DEPTH = 6  # of a group's trees: more complete levels in a row are too rare to pay
_RENEW_EVERY = 16  # levels learned between updates of the order of runs

BeamPath = tuple[int, tuple[int, ...]]  # a continuation: the beam, and the tokens after it
Levels = list[list[BeamPath]]  # at each depth, the guesses of all beams, best first


@dataclass(frozen=True, slots=True)
class Frontier:
    """A guess that may be extended. place: index of the list after it, in its beam's candidates."""

    score: float
    beam: int
    path: tuple[int, ...]
    place: int


def num_followed(depth: int, width: int) -> int:
    """Number of guesses extended at this depth (1 is the first) in a group of `width` beams."""
    return FOLLOWED[min(depth, len(FOLLOWED)) - 1] * width


def rank_guesses(
    candidates: Sequence[Candidates | None], scores: Sequence[float], ends: frozenset[int], max_depth: int
) -> Levels:
    """All beams' guesses at each depth, best first: by score + sum of log confidences; ties go to the better beam.

    candidates[b]: of beam b, None if nothing was drafted for it. ends: tokens after which no beam continues.
    """
    width = len(scores)
    most = math.ceil(WIDTHS[-1] * width)
    frontier = [Frontier(score, beam, (), 0) for beam, score in enumerate(scores) if candidates[beam] is not None]
    levels: Levels = []
    while frontier and len(levels) < min(max_depth, MAX_DEPTH):
        guesses = sorted(
            (g for item in frontier for g in continuations(item, candidates[item.beam])),
            key=lambda g: (-g.score, g.beam, g.path),
        )
        level = [g for g in guesses if g.path[-1] not in ends][:most]
        levels.append([(g.beam, g.path) for g in level])
        frontier = [g for g in level[: num_followed(len(levels), width)] if g.place != NOWHERE]
    return levels


def continuations(item: Frontier, candidates: Candidates | None) -> list[Frontier]:
    """The guesses in the list that `item` refers to."""
    assert candidates is not None
    tokens, chances = candidates.tokens[item.place].tolist(), candidates.confidences[item.place].tolist()
    return [
        Frontier(
            item.score + math.log(chance),
            item.beam,
            (*item.path, token),
            candidates.list_after(item.place, rank),
        )
        for rank, (token, chance) in enumerate(zip(tokens, chances, strict=True))
        if chance > 0.0
    ]


@dataclass(frozen=True, slots=True)
class GuessRun:
    """Guesses first..last - 1 of a level, and the expected tokens gained by verifying each. depth: 1 is the first."""

    depth: int
    first: int
    last: int
    value: float


class Completion:
    """Probability that the first c W guesses at a depth contain all W winners, for groups of one width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.chances = [list(_FIRST), *(list(_DEEPER) for _ in range(MAX_DEPTH - 1))]
        self._counts = [0] * MAX_DEPTH
        self._runs: list[GuessRun] = []
        self._since = 0

    def learn(self, levels: Levels, chosen: Sequence[Sequence[BeamPath]]) -> None:
        """chosen[d]: the beams that continued at level d of a step; all of its levels but the last were verified."""
        for depth, (level, winners) in enumerate(zip(levels, chosen, strict=False)):
            positions = {path: number for number, path in enumerate(level, start=1)}
            worst = max(positions.get(winner, math.inf) for winner in winners)
            self._counts[depth] += 1
            rate = 1.0 / min(_MEMORY, _SEEN + self._counts[depth])
            row = self.chances[depth]
            row[:] = [c + rate * ((worst <= w * self.width) - c) for c, w in zip(row, WIDTHS, strict=True)]
            self._since += 1

    def fade(self) -> None:
        """Record a step without drafts: texts change, and without drafts nothing is learned."""
        for row, start in zip(self.chances, (_FIRST, *((_DEEPER,) * (MAX_DEPTH - 1))), strict=True):
            row[:] = [c + _FADING * (s - c) for c, s in zip(row, start, strict=True)]
        self._since += 1

    @property
    def runs(self) -> list[GuessRun]:
        """Runs in verification order: values fall, and a level comes after the levels before it."""
        if not self._runs or self._since >= _RENEW_EVERY:
            self._runs, self._since = self._order(), 0
        return self._runs

    def _order(self) -> list[GuessRun]:
        """Repeatedly takes the run that gains most tokens per node."""
        at = [-1] * MAX_DEPTH  # for each depth, index of the widest of WIDTHS taken so far
        runs: list[GuessRun] = []
        best: tuple[float, int, int] | None
        while True:
            best, before = None, self._levels(at)
            for depth in range(min(MAX_DEPTH, 1 + sum(j >= 0 for j in at))):
                for j in range(at[depth] + 1, len(WIDTHS)):
                    more = self._levels([*at[:depth], j, *at[depth + 1 :]]) - before
                    value = self.width * more / (self._end(j) - self._end(at[depth]))
                    if best is None or value > best[0] + 1e-12:
                        best = value, depth, j
            if best is None or best[0] <= 1e-6:
                return runs
            value, depth, j = best
            value = min(value, runs[-1].value) if runs else value
            runs.append(GuessRun(depth + 1, self._end(at[depth]), self._end(j), value))
            at[depth] = j

    def _end(self, j: int) -> int:
        return 0 if j < 0 else math.ceil(WIDTHS[j] * self.width)

    def _levels(self, at: list[int]) -> float:
        """Expected levels beyond the first if each depth is verified up to these widths."""
        total, reached = 0.0, 1.0
        for row, j in zip(self.chances, at, strict=True):
            if j < 0:
                break
            reached *= row[j]
            total += reached
        return total


def plant(levels: Levels, runs: Sequence[GuessRun], num_beams: int, max_nodes: int) -> list[tuple[Tree, list[float]]]:
    """The guesses of the runs as one tree per beam, of at most max_nodes nodes, and their values, in the order of the
    runs.

    A guess whose parent is missing adds the parent too; one that does not fit in its beam's tree is left out.
    """
    tokens: list[list[int]] = [[] for _ in range(num_beams)]
    parents: list[list[int]] = [[] for _ in range(num_beams)]
    values: list[list[float]] = [[] for _ in range(num_beams)]
    nodes: list[dict[tuple[int, ...], int]] = [{(): ROOT} for _ in range(num_beams)]
    for run in runs:
        level = levels[run.depth - 1] if run.depth <= len(levels) else []
        for beam, path in level[run.first : run.last]:
            known = nodes[beam]
            missing = [path[:end] for end in range(1, len(path) + 1) if path[:end] not in known]
            if len(tokens[beam]) + len(missing) > max_nodes:
                continue
            for each in missing:
                known[each] = len(tokens[beam])
                tokens[beam].append(each[-1])
                parents[beam].append(known[each[:-1]])
                values[beam].append(run.value)
    trees = (Tree(tuple(t), tuple(p)) for t, p in zip(tokens, parents, strict=True))
    return list(zip(trees, values, strict=True))


def whole_runs(sizes: Sequence[int], values: Sequence[Sequence[float]]) -> list[int]:
    """sizes[b]: how many nodes of beam b the budget covers. Reduced to whole runs: part of a run completes no level."""
    cut = {v[size] for size, v in zip(sizes, values, strict=True) if size < len(v)}
    taken = [v[size - 1] for size, v in zip(sizes, values, strict=True) if size]
    if not taken or min(taken) not in cut:
        return list(sizes)
    return [sum(value > min(taken) for value in v[:size]) for size, v in zip(sizes, values, strict=True)]
