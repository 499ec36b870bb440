"""Beams in the batch's policy: whole runs or none, what is learned from which steps, and how deep groups draft."""

import numpy as np
import pytest

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.beam.group import BeamGroup
from medusa_dist.engine.beam.policy import BeamPolicy
from medusa_dist.engine.beam.result import BeamResult
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.medusa.beam.search import BeamRules, BeamTraversal, Search
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.tree import EMPTY, Tree
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

W, MAX_LEN = 4, 2000


def group_of(name: str = "x", likely: int = 0) -> BeamGroup:
    """W beams with the same three lists of guesses; those of beam `likely` are the likeliest by far."""
    request = Request(request_id=name, prompt_ids=(1, 2, 3), params=SamplingParams(beam_width=W, max_tokens=90), seed=0)
    group = BeamGroup(request, BeamRules(W, 90))
    group.admit()
    group.beams, group.idle = group.sequences, []
    tokens = np.arange(10, 40).reshape(3, 10)
    chances = np.tile(0.5 * 0.7 ** np.arange(10, dtype=np.float32), (3, 1))
    for number, beam in enumerate(group.beams):
        beam.tokens = [1, 2, 3, number]
        beam.candidates = {"heads": Candidates(tokens, chances)}
    group.search = Search(tuple((n,) for n in range(W)), tuple(0.0 if n == likely else -20.0 for n in range(W)))
    return group


def verdicts(group: BeamGroup, num_levels: int, hit: bool) -> list[BeamResult]:
    """A step in which the first beam's likeliest continuations won, or, at the last level, some that nobody guessed."""
    chosen = []
    for level in range(num_levels):
        path = tuple(10 + 10 * d for d in range(level))
        wins = hit or level < num_levels - 1
        chosen.append(tuple((0, (*path, (10 + 10 * level if wins else 90) + n)) for n in range(W)))
    outputs = tuple((0, *path) for _, path in chosen[-1])
    walk = BeamTraversal(Search(outputs, (-1.0,) * W), (), num_levels, ((),) * W, tuple(chosen))
    return [BeamResult(b, Accepted((), ()), (), 0, b, walk, (), {}) for b in group.beams]


def plant(made: TreePolicy, beams: list[Sequence]) -> int:
    for beam in beams:
        beam.tree = EMPTY
    for beam, tree, values, _ in made.trees(beams, 0, MAX_LEN):
        beam.tree, beam.tree_values = tree, values
    return sum(len(beam.tree) for beam in beams)


def test_draft_nodes_go_to_the_likeliest_beams() -> None:
    group = group_of(likely=2)
    made = TreePolicy(SpeculationConfig(max_nodes=50))
    assert plant(made, group.beams) > 40
    assert len(group.beams[2].tree) == max(len(beam.tree) for beam in group.beams) > len(group.beams[0].tree)
    assert group.beams[2].tree.tokens[:6] == tuple(range(10, 16)), "the first run: 1.5 W"


@pytest.mark.parametrize("kink", range(4, 40, 3))
def test_budget_takes_whole_runs_only(kink: int) -> None:
    """Rows are free up to the kink and unpayable beyond."""
    made = TreePolicy(SpeculationConfig(max_nodes=50), StepCost((1, kink, kink + 1), (1.0, 1.0, 90.0)))
    group = group_of()
    num_nodes = plant(made, group.beams)
    ends, total = [0], 0
    runs = BeamPolicy(50)._completion(group).runs
    for index, run in enumerate(runs):
        total += run.last - run.first
        if index + 1 == len(runs) or runs[index + 1].value < run.value:
            ends.append(total)
    assert num_nodes == max(end for end in ends if end <= max(0, kink - W))


def test_beam_groups_and_single_sequences_share_a_budget() -> None:
    request = Request(request_id="y", prompt_ids=(1, 2), params=SamplingParams(max_tokens=90), seed=0)
    group, alone = group_of(), SingleSequence(request, (5,)).root
    alone.candidates = {"heads": Candidates(np.arange(10)[None], np.full((1, 10), 0.09, dtype=np.float32))}
    made = TreePolicy(SpeculationConfig(max_nodes=9), StepCost((1, W + 1, W + 7, W + 8), (1.0, 1.0, 1.01, 90.0)))
    assert plant(made, [*group.beams, alone]) == 6 and not len(alone.tree)
    alone.candidates = {"heads": Candidates(np.arange(10)[None], np.full((1, 10), 0.9, dtype=np.float32))}
    assert plant(made, [*group.beams, alone]) <= 6 and len(alone.tree) > 0 == sum(len(b.tree) for b in group.beams)


def test_beam_without_candidates_gets_no_tree() -> None:
    group = group_of(likely=1)
    group.beams[1].candidates = {}
    made = TreePolicy(SpeculationConfig(max_nodes=9))
    plant(made, group.beams)
    assert len(group.beams[1].tree) == 0 < len(group.beams[0].tree)


def first_chance(made: BeamPolicy, group: BeamGroup) -> float:
    return made._completion(group).chances[0][0]


def test_only_steps_with_drafted_candidates_change_the_chances() -> None:
    group, made = group_of(), BeamPolicy(9)

    def step(hit: bool) -> float:
        before = first_chance(made, group)
        for beam, tree, _ in made.trees([(beam, (9, 9)) for beam in group.beams]):
            beam.tree = tree
        made.learn(verdicts(group, 1, hit))
        return first_chance(made, group) - before

    assert step(hit=True) == step(hit=False) == 0.0  # nothing was remembered there
    group.was_drafted = True
    assert step(hit=True) > 0 > step(hit=False)


def test_learned_chances_fade_while_nothing_is_drafted() -> None:
    """A text that the heads do not understand does not end speculation for the next one."""
    group, made = group_of(), BeamPolicy(9)
    start = first_chance(made, group)
    group.was_drafted = True
    for _ in range(300):
        made.trees([(beam, (9, 9)) for beam in group.beams])
        for beam in group.beams:
            beam.tree = Tree((10,), (-1,))
        made.learn(verdicts(group, 1, hit=False))
    assert first_chance(made, group) < 0.3 * start
    group.was_drafted = False
    for _ in range(1500):
        for beam in group.beams:
            beam.tree = EMPTY
        made.learn(verdicts(group, 1, hit=False))
    assert first_chance(made, group) > 0.9 * start


def test_chances_are_learned_per_beam_width() -> None:
    group, made = group_of(), BeamPolicy(9)
    other = BeamGroup(group.request, BeamRules(2, 90))
    group.was_drafted = True
    made.trees([(beam, (9, 9)) for beam in group.beams])
    made.learn(verdicts(group, 1, hit=True))
    assert first_chance(made, group) > first_chance(made, other)


def test_groups_draft_as_deep_as_they_verify_and_sometimes_deeper() -> None:
    """And a level deeper now and then, so that what has begun to pay is found."""
    group, made = group_of(), BeamPolicy(9)
    seen = []
    for _ in range(16):
        group.beams[0].tree = Tree((10, 20), (-1, 0))
        made.learn(verdicts(group, 1, hit=True))
        seen.append(group.reach)
    assert sorted(set(seen)) == [2, 3] and seen.count(3) == 2
    group.beams[0].tree = EMPTY
    made.learn(verdicts(group, 1, hit=True))
    assert group.reach == 1


def test_candidates_of_an_earlier_step_do_not_change_the_chances() -> None:
    """The heads were paused: this step's winners were not guessed for."""
    group, made = group_of(), BeamPolicy(9)
    group.was_drafted = True
    made.trees([(beam, (9, 9)) for beam in group.beams])
    group.beams[0].tree = Tree((10,), (-1,))
    made.learn(verdicts(group, 1, hit=True))
    before = first_chance(made, group)
    made.learn(verdicts(group, 1, hit=False))
    assert first_chance(made, group) == before
