"""BeamPolicy: which guesses of the beams of a search are worth how much, group by group.

Owns the learned chances of each width and how deep groups draft. Not here: the order of guesses
(medusa/beam/beam_tree.py), the budget over the whole batch (speculation.py).
"""

from collections.abc import Sequence as Seq

from medusa_dist.engine.beam.group import BeamGroup, beam_groups
from medusa_dist.engine.beam.result import BeamResult
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.beam.beam_tree import Completion, plant, rank_guesses, whole_runs
from medusa_dist.medusa.trees.tree import Tree

_LOOK_DEEPER = 8  # steps between two in which a group drafts a level more than it verified last

RankedTrees = list[tuple[Sequence, Tree, Seq[float]]]


class BeamPolicy:
    """Belongs to one engine's Speculation. max_nodes: of a beam."""

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._completions: dict[int, Completion] = {}  # by the width of the search
        self._num_steps = 0

    def trees(self, drafted: Seq[tuple[Sequence, tuple[int, int]]]) -> RankedTrees:
        """drafted: beams with candidates, and the most nodes and depth that can be of use. One tree for each, as large
        as it may be, and its nodes' values."""
        limits = dict(drafted)
        planted: RankedTrees = []
        for group in beam_groups(limits):
            guesses = [beam.candidates if beam in limits else None for beam in group.beams]
            most, depth = next(limits[beam] for beam in group.beams if beam in limits)
            group.levels = rank_guesses(guesses, group.search.scores, group.rules.ends, depth)
            runs = self._completion(group).runs
            trees = plant(group.levels, runs, len(group.beams), min(most, self._max_nodes))
            planted += [(b, *tree) for b, tree in zip(group.beams, trees, strict=True) if b in limits]
        return planted

    def round(self, ranked: Seq[tuple[Sequence, Tree, Seq[float]]], sizes: list[int]) -> None:
        """Take back what the budget pays for of runs that it does not pay for whole: part of one completes no level."""
        places: dict[BeamGroup, list[int]] = {}
        for place, (sequence, _, _) in enumerate(ranked):
            if isinstance(sequence.group, BeamGroup):
                places.setdefault(sequence.group, []).append(place)
        for own in places.values():
            whole = whole_runs([sizes[place] for place in own], [ranked[place][2] for place in own])
            for place, size in zip(own, whole, strict=True):
                sizes[place] = size

    def learn(self, verdicts: Seq[StepResult]) -> None:
        """See where the winners stood; before the scheduler takes the trees away."""
        beams = [v for v in verdicts if isinstance(v, BeamResult)]
        self._num_steps += bool(beams)
        for group in beam_groups(v.source for v in beams):
            walk = next(v.walk for v in beams if v.source.group is group)
            depth = max((max(beam.tree.depths, default=0) for beam in group.beams), default=0)
            group.reach = max(1, depth + (self._num_steps % _LOOK_DEEPER == 0), walk.num_levels)
            completion = self._completion(group)
            if depth == 0:
                completion.fade()
            if group.was_drafted:  # else nothing was remembered, and the next steps do better
                completion.learn(group.levels, walk.chosen)
            group.levels = []

    def _completion(self, group: BeamGroup) -> Completion:
        return self._completions.setdefault(group.rules.width, Completion(group.rules.width))
