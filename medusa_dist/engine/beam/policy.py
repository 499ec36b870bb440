"""BeamPolicy: which guesses of the beams of a search are worth how much, group by group.

Owns the learned chances of each width and how deep groups draft. Not here: the order of guesses
(medusa/beam/beam_tree.py), the budget over the whole batch (speculation.py).
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from medusa_dist.engine.beam.group import BeamGroup
from medusa_dist.engine.beam.result import BeamResult
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.engine.state.step_result import StepResult
from medusa_dist.medusa.beam.beam_tree import Completion, Levels, plant, rank_guesses, whole_runs
from medusa_dist.medusa.trees.tree import Tree

_LOOK_DEEPER = 8  # steps between two in which a group drafts a level more than it verified last

RankedTrees = list[tuple[Sequence, Tree, Seq[float]]]


class BeamPolicy:
    """Belongs to one engine's Speculation. max_nodes: of a beam."""

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._completions: dict[int, Completion] = {}  # by the width of the search
        self._levels: dict[int, Levels] = {}  # of this step, by id of the group
        self._num_steps = 0

    def trees(self, drafted: Seq[tuple[Sequence, tuple[int, int]]]) -> RankedTrees:
        """drafted: beams with candidates, and the most nodes and depth that can be of use. One tree for each, as large
        as it may be, and its nodes' values."""
        limits = {id(beam): limit for beam, limit in drafted}
        planted: RankedTrees = []
        for group in _groups_of(beam for beam, _ in drafted):
            guesses = [beam.candidates if id(beam) in limits else None for beam in group.beams]
            most, depth = next(limits[id(beam)] for beam in group.beams if id(beam) in limits)
            levels = rank_guesses(guesses, group.search.scores, group.rules.ends, depth)
            self._levels[id(group)] = levels
            runs = self._completion(group).runs
            trees = plant(levels, runs, len(group.beams), min(most, self._max_nodes))
            planted += [(b, *tree) for b, tree in zip(group.beams, trees, strict=True) if id(b) in limits]
        return planted

    def round(self, ranked: RankedTrees, sizes: list[int]) -> None:
        """Take back what the budget pays for of runs that it does not pay for whole: part of one completes no level."""
        places: dict[int, list[int]] = {}
        for place, (sequence, _, _) in enumerate(ranked):
            if sequence.group is not None:
                places.setdefault(id(sequence.group), []).append(place)
        for own in places.values():
            whole = whole_runs([sizes[place] for place in own], [ranked[place][2] for place in own])
            for place, size in zip(own, whole, strict=True):
                sizes[place] = size

    def learn(self, verdicts: Seq[StepResult]) -> None:
        """See where the winners stood; before the scheduler takes the trees away."""
        beams = [v for v in verdicts if isinstance(v, BeamResult)]
        self._num_steps += bool(beams)
        for group in _groups_of(v.source for v in beams):
            walk = next(v.walk for v in beams if v.source.group is group)
            depth = max((max(beam.tree.depths, default=0) for beam in group.beams), default=0)
            group.reach = max(1, depth + (self._num_steps % _LOOK_DEEPER == 0), walk.num_levels)
            completion = self._completion(group)
            if depth == 0:
                completion.fade()
            if group.was_drafted:  # else nothing was remembered, and the next steps do better
                completion.learn(self._levels.get(id(group), []), walk.chosen)
        self._levels.clear()

    def _completion(self, group: BeamGroup) -> Completion:
        return self._completions.setdefault(group.rules.width, Completion(group.rules.width))


def _groups_of(beams: Iterable[Sequence]) -> list[BeamGroup]:
    """Their groups, each once, in this order."""
    return list({id(group): group for beam in beams if (group := beam.group) is not None}.values())
