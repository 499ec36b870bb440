"""BeamPolicy: the value of each draft for the beams of a search, group by group.

Owns the learned completion probabilities of each beam width, and how deep groups draft. Not here: the order of guesses
(medusa/beam/beam_tree.py), the budget over the whole batch (spec/tree_policy.py).
"""

from collections.abc import Sequence as Seq

from medusa_dist.config import HEADS
from medusa_dist.engine.beam.group import BeamGroup, beam_groups
from medusa_dist.engine.beam.result import BeamResult
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.beam.beam_tree import Completion, plant, rank_guesses, whole_runs
from medusa_dist.medusa.trees.tree import Tree

_LOOK_DEEPER = 8  # steps between attempts to draft one level more than was verified last

RankedTrees = list[tuple[Sequence, Tree, Seq[float]]]


class BeamPolicy:
    """Belongs to one engine's TreePolicy. max_nodes: per beam."""

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._completions: dict[int, Completion] = {}  # by beam width
        self._num_steps = 0

    def trees(self, drafted: Seq[tuple[Sequence, tuple[int, int]]]) -> RankedTrees:
        """drafted: beams with candidates, and the most nodes and depth that can be useful. One tree per beam, as large
        as allowed, and the values of its nodes."""
        limits = dict(drafted)
        planted: RankedTrees = []
        for group in beam_groups(limits):
            guesses = [beam.candidates.get(HEADS) if beam in limits else None for beam in group.beams]
            most, depth = next(limits[beam] for beam in group.beams if beam in limits)
            group.levels = rank_guesses(guesses, group.search.scores, group.rules.ends, depth)
            runs = self._completion(group).runs
            trees = plant(group.levels, runs, len(group.beams), min(most, self._max_nodes))
            planted += [(b, *tree) for b, tree in zip(group.beams, trees, strict=True) if b in limits]
        return planted

    def round(self, ranked: Seq[tuple[Sequence, Seq[float]]], sizes: list[int]) -> None:
        """Remove nodes of runs that the budget covers only in part: part of a run completes no level.

        ranked: sequences and the values of their trees, others than beams included.
        """
        indices: dict[BeamGroup, list[int]] = {}
        for index, (sequence, _) in enumerate(ranked):
            if isinstance(sequence.group, BeamGroup):
                indices.setdefault(sequence.group, []).append(index)
        for own in indices.values():
            whole = whole_runs([sizes[index] for index in own], [ranked[index][1] for index in own])
            for index, size in zip(own, whole, strict=True):
                sizes[index] = size

    def learn(self, verdicts: Seq[StepResult]) -> None:
        """Learn where in the order the winners were; called before the scheduler drops the trees."""
        beams = [v for v in verdicts if isinstance(v, BeamResult)]
        self._num_steps += bool(beams)
        for group in beam_groups(v.source for v in beams):
            traversal = next(v.traversal for v in beams if v.source.group is group)
            depth = max((max(beam.tree.depths, default=0) for beam in group.beams), default=0)
            group.reach = max(1, depth + (self._num_steps % _LOOK_DEEPER == 0), traversal.num_levels)
            completion = self._completion(group)
            if depth == 0:
                completion.fade()
            if group.was_drafted:  # without a memory of the last step, results are not representative
                completion.learn(group.levels, traversal.chosen)
            group.levels = []

    def _completion(self, group: BeamGroup) -> Completion:
        return self._completions.setdefault(group.rules.width, Completion(group.rules.width))
