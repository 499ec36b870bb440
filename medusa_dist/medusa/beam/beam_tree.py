"""What is drafted for the beams of one search: a beam search over the heads' guesses themselves.

Owns the order in which a group's guesses are worth verifying, and the learned chance that a level completes. Pure. Not
here: the guesses (engine/beam/beam_drafter.py), how many are verified (medusa/trees/budget.py), what becomes of them
(beam.py). A level of W beams is advanced only if all of its W winners were verified, so guesses are not ranked beam by
beam: at each depth, all beams' guesses stand in one order, by what the search itself would go by, the beam's score plus
the sum of log confidences. If the worst of the winners stands at place r of that order, the first r guesses complete
the level. How often the first c W do is learned (`Completion`), and the budget adds whole runs of c W guesses, each for
the tokens it is expected to bring.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medusa_dist.medusa.trees.tree import NOWHERE, ROOT, Candidates, Tree

WIDTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # c: runs of guesses end at c W
FOLLOWED = (2, 1)  # so many times W guesses are followed up at depth 1, 2, ...; beyond: the last
# Chances that the first c W guesses hold all winners, as the demo's heads settle: at depth 1, and, if the levels before
# were complete, deeper.
_FIRST = (0.25, 0.36, 0.42, 0.48, 0.54, 0.58)
_DEEPER = (0.18, 0.27, 0.31, 0.36, 0.41, 0.44)
_SEEN = 16  # levels that these are worth
_MEMORY = 128  # levels that count
_FADING = 0.002  # a step without drafts: what was learned falls back to the above, so that it is tried again
MAX_DEPTH = 6  # of a group's trees: so many levels in a row are never complete often enough to pay
_RENEW_EVERY = 16  # levels learned between two looks at which runs come first

BeamPath = tuple[int, tuple[int, ...]]  # a continuation: the beam, and the tokens behind it
Levels = list[list[BeamPath]]  # at each depth, the guesses of all beams, best first


@dataclass(frozen=True, slots=True)
class Frontier:
    """A guess that may be followed up. place: of the list behind it, in its beam's candidates."""

    score: float
    beam: int
    path: tuple[int, ...]
    place: int


def num_followed(depth: int, width: int) -> int:
    """How many guesses at this depth (1 is the first) are followed up, in a group of so many beams."""
    return FOLLOWED[min(depth, len(FOLLOWED)) - 1] * width


def rank_guesses(
    candidates: Sequence[Candidates | None], scores: Sequence[float], ends: frozenset[int], max_depth: int
) -> Levels:
    """All beams' guesses at each depth, best first: by score + sum of log confidences, the better beam first of equals.

    candidates[b]: of beam b, None if nothing was drafted for it. ends: tokens behind which no beam goes on.
    """
    width = len(scores)
    most = math.ceil(WIDTHS[-1] * width)
    frontier = [Frontier(score, beam, (), 0) for beam, score in enumerate(scores) if candidates[beam] is not None]
    levels: Levels = []
    while frontier and len(levels) < min(max_depth, MAX_DEPTH):
        guesses = sorted(
            (g for item in frontier for g in behind(item, candidates[item.beam])),
            key=lambda g: (-g.score, g.beam, g.path),
        )
        level = [g for g in guesses if g.path[-1] not in ends][:most]
        levels.append([(g.beam, g.path) for g in level])
        frontier = [g for g in level[: num_followed(len(levels), width)] if g.place != NOWHERE]
    return levels


def behind(item: Frontier, candidates: Candidates | None) -> list[Frontier]:
    """The guesses in the list that `item` points to."""
    assert candidates is not None
    tokens, chances = candidates.tokens[item.place].tolist(), candidates.confidences[item.place].tolist()
    return [
        Frontier(item.score + math.log(chance), item.beam, (*item.path, token), candidates.after(item.place, rank))
        for rank, (token, chance) in enumerate(zip(tokens, chances, strict=True))
        if chance > 0.0
    ]


@dataclass(frozen=True, slots=True)
class GuessRun:
    """Guesses first..last - 1 of a level, and the tokens that verifying each of them brings. depth: 1 is the first."""

    depth: int
    first: int
    last: int
    value: float


class Completion:
    """How likely the first c W guesses at a depth hold all W winners, for groups of one width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.chances = [list(_FIRST), *(list(_DEEPER) for _ in range(MAX_DEPTH - 1))]
        self._counts = [0] * MAX_DEPTH
        self._runs: list[GuessRun] = []
        self._since = 0

    def learn(self, levels: Levels, chosen: Sequence[Sequence[BeamPath]]) -> None:
        """chosen[d]: the beams that a step let go on at its level d; all of its levels but the last were verified."""
        for depth, (level, winners) in enumerate(zip(levels, chosen, strict=False)):
            places = {place: number for number, place in enumerate(level, start=1)}
            worst = max(places.get(winner, math.inf) for winner in winners)
            self._counts[depth] += 1
            rate = 1.0 / min(_MEMORY, _SEEN + self._counts[depth])
            row = self.chances[depth]
            row[:] = [c + rate * ((worst <= w * self.width) - c) for c, w in zip(row, WIDTHS, strict=True)]
            self._since += 1

    def fade(self) -> None:
        """A step without drafts: texts change, and what is not tried is not learned."""
        for row, start in zip(self.chances, (_FIRST, *((_DEEPER,) * (MAX_DEPTH - 1))), strict=True):
            row[:] = [c + _FADING * (s - c) for c, s in zip(row, start, strict=True)]
        self._since += 1

    @property
    def runs(self) -> list[GuessRun]:
        """In the order in which they are worth verifying: values fall, and a level comes after those before it."""
        if not self._runs or self._since >= _RENEW_EVERY:
            self._runs, self._since = self._order(), 0
        return self._runs

    def _order(self) -> list[GuessRun]:
        """The next run is the one that gains most tokens a node."""
        at = [-1] * MAX_DEPTH  # of each depth, the widest of WIDTHS that was taken
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
        """Expected levels beyond the first, if so wide a part of each depth is verified."""
        total, reached = 0.0, 1.0
        for row, j in zip(self.chances, at, strict=True):
            if j < 0:
                break
            reached *= row[j]
            total += reached
        return total


def plant(levels: Levels, runs: Sequence[GuessRun], num_beams: int, max_nodes: int) -> list[tuple[Tree, list[float]]]:
    """The runs' guesses as one tree a beam, of at most max_nodes, and their values, in the order of the runs.

    A guess whose parent is not there brings it along; one that its beam's tree has no room for is left out.
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
    """sizes[b]: how many of beam b's nodes the budget pays for. Fewer, if that would cut a run: a part of one
    completes no level."""
    cut = {v[size] for size, v in zip(sizes, values, strict=True) if size < len(v)}
    taken = [v[size - 1] for size, v in zip(sizes, values, strict=True) if size]
    if not taken or min(taken) not in cut:
        return list(sizes)
    return [sum(value > min(taken) for value in v[:size]) for size, v in zip(sizes, values, strict=True)]
