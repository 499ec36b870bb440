"""Which trees a step verifies: bounds, static trees, the budget over a batch, and when heads are paused."""

from types import SimpleNamespace

import numpy as np
import pytest

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.engine.state.step_notes import StepNotes
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.budget import StepCost, best_budget
from medusa_dist.medusa.trees.calibration import BEAMS, SAMPLED
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.tree import Tree, values_of
from medusa_dist.ops.attention.padded import KEY_CHUNK
from medusa_dist.outputs import TreeReason
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

MAX_LEN = 2000
FLAT = StepCost((4, 1000), (1.0, 1.0), 0.1)
STEEP = StepCost((1, 1000), (1.0, 1000.0), 0.1)


def sequence(known: int = 20, chance: float = 0.6, heads: int = 4, **params: object) -> Sequence:
    """Guess r of head k is token 10 k + r; each is half as likely as the one before."""
    fields = {"max_tokens": 1000} | params
    request = Request(request_id="x", prompt_ids=(1, 2, 3), params=SamplingParams(**fields), seed=0)
    made = SingleSequence(request, (5,) * (known - 3)).root
    tokens = 10 * np.arange(1, heads + 1)[:, None] + np.arange(5)
    chances = np.full((heads, 1), chance) * 0.5 ** np.arange(5)
    made.candidates = {"heads": Candidates(tokens.astype(np.int64), chances.astype(np.float32))}
    return made


def policy(nodes: int = 7, cost: StepCost | None = None) -> TreePolicy:
    return TreePolicy(SpeculationConfig(mode="auto", max_nodes=nodes), cost)


def only_tree(made: TreePolicy, one: Sequence, max_len: int = MAX_LEN) -> Tree:
    ((found, tree, one.tree_values, _),) = made.trees([one], 0, max_len)
    assert found is one
    return tree


def test_sequences_without_candidates_get_no_tree() -> None:
    drafted, bare = sequence(), sequence()
    bare.candidates = {}
    assert [s for s, *_ in policy().trees([bare, drafted], 0, MAX_LEN)] == [drafted]
    assert policy().trees([bare], 0, MAX_LEN) == policy().trees([], 0, MAX_LEN) == []


def test_trees_have_max_nodes_nodes_without_a_cost_curve() -> None:
    for nodes in (1, 7, 31):
        tree = only_tree(policy(nodes), sequence())
        assert len(tree) == nodes and tree.tokens[0] == 10
    assert len(policy(0).trees([sequence()], 0, MAX_LEN)[0][1]) == 0


@pytest.mark.parametrize(("known", "most"), [(192, 100), (575, 1), (574, 2), (564, 12), (576, 100)])
def test_tree_stays_inside_a_chunk_of_keys(known: int, most: int) -> None:
    tree = only_tree(policy(100), sequence(known))
    assert len(tree) == most
    assert known // KEY_CHUNK == (known + len(tree) - 1) // KEY_CHUNK
    static = TreePolicy(SpeculationConfig(mode="static", tree=tuple((r,) for r in range(5))))
    assert len(only_tree(static, sequence(known))) == min(5, most)
    unbound = TreePolicy(SpeculationConfig(max_nodes=100), key_chunk=None)
    assert len(only_tree(unbound, sequence(known))) == 100


@pytest.mark.parametrize("left", [1, 2, 3, 4, 50])
def test_tree_is_no_deeper_than_the_tokens_that_are_left(left: int) -> None:
    """Accepted and bonus together: the deepest useful node is one above what is left."""
    for one, max_len in ((sequence(20, max_tokens=17 + left), MAX_LEN), (sequence(20, max_tokens=None), 20 + left)):
        trees = policy(100).trees([one], 0, max_len)
        assert (max(trees[0][1].depths) if trees else 0) == min(left - 1, 4)


def test_static_tree_ignores_max_nodes_and_costs() -> None:
    paths = ((0,), (1,), (0, 0), (1, 2))
    made = TreePolicy(SpeculationConfig(mode="static", tree=paths, max_nodes=1), STEEP)
    assert only_tree(made, sequence()) == Tree((10, 11, 20, 22), (-1, -1, 0, 1))
    assert made.gate.should_draft(1)


def test_budget_goes_to_the_likelier_sequence() -> None:
    likely, unlikely = sequence(chance=0.95), sequence(chance=0.02)
    sizes = {s: len(tree) for s, tree, *_ in policy(7, FLAT).trees([unlikely, likely], 0, MAX_LEN)}
    assert sizes == {likely: 7, unlikely: 7}  # rows cost nothing
    kinked = StepCost((2, 6, 7), (1.0, 1.0, 3.0), 0.1)  # four rows are free, the fifth costs a step
    sizes = {s: len(tree) for s, tree, *_ in policy(7, kinked).trees([unlikely, likely], 0, MAX_LEN)}
    assert sizes == {likely: 4, unlikely: 0}
    assert all(len(tree) == 0 for _, tree, *_ in policy(7, STEEP).trees([likely, unlikely], 0, MAX_LEN))


def test_prompt_rows_lower_the_budget() -> None:
    stepped = StepCost((1, 8, 9), (1.0, 1.0, 5.0), 0.1)
    assert [len(policy(7, stepped).trees([sequence()], other, MAX_LEN)[0][1]) for other in (0, 4, 7)] == [7, 3, 0]


def test_heads_that_do_not_pay_are_paused_and_probed_rarely() -> None:
    made = policy(7, STEEP)
    calls = [made.gate.should_draft(1) for _ in range(3)]
    for _ in range(40):
        if made.gate.should_draft(1):
            made.trees([sequence()], 0, MAX_LEN)
    ran = [made.gate.should_draft(1 + step % 5) for step in range(1000)]
    assert all(calls) and 5 <= sum(ran) <= 10  # at most one step in a hundred, whatever the batches


def test_gain_of_one_batch_size_is_estimated_from_drafts_in_another() -> None:
    """Rows are free up to 12 and dear beyond, so a tree of a few nodes pays for 3 sequences and none does for 12."""
    made = policy(7, StepCost((1, 12, 13, 60), (1.0, 1.0, 2.0, 49.0), 0.05))
    for _ in range(20):
        made.trees([sequence(chance=0.7) for _ in range(2)], 0, MAX_LEN)
    assert made.gate.gain(3) > 1.2 and made.gate.should_draft(3)
    assert made.gate.gain(12) < 1.0 and not made.gate.should_draft(12)
    assert made.gate.gain(200) < 1.0  # more than are remembered


def test_gain_equals_that_of_best_budget() -> None:
    made = policy(7, FLAT)
    for _ in range(64):
        made.trees([sequence(chance=0.9)], 0, MAX_LEN)
    values = values_of(
        only_tree(made, one := sequence(chance=0.9)),
        made.calibrations["heads"].calibrated(one.candidates["heads"], SAMPLED),
    )
    assert made.gate.gain(1) == pytest.approx(best_budget(values, 1, 0, FLAT)[1])
    assert made.gate.gain(2) == pytest.approx(best_budget(sorted([*values, *values], reverse=True), 2, 0, FLAT)[1])


def test_heads_that_pay_run_in_all_steps_but_rare_probes() -> None:
    made = policy(7, FLAT)
    ran = []
    for _ in range(1000):
        ran.append(made.gate.should_draft(3))
        made.trees([sequence(chance=0.9) for _ in range(3)], 0, MAX_LEN)
    assert 5 <= ran.count(False) <= 10  # at most one step in a hundred


def test_steps_slower_than_the_curve_make_drafts_worthwhile() -> None:
    made = policy(7, STEEP)
    assert len(only_tree(made, sequence())) == 0  # each row costs as much as the whole step
    for _ in range(200):
        made.observe(1, 0, 50.0)
    assert len(only_tree(made, sequence())) > 0
    for _ in range(200):
        made.observe(8, 0, STEEP(8))
    assert len(made.trees([sequence() for _ in range(8)], 0, MAX_LEN)[0][1]) == 0  # learned for each batch size


def test_drafting_cost_grows_with_the_number_of_sequences() -> None:
    cost = StepCost((4, 64), (1.0, 1.0), 0.1, 0.05)
    assert cost.drafting(1) == pytest.approx(0.15) and cost.drafting(20) == pytest.approx(1.1)
    assert cost.raised(0.5, 0.0, 0.0)(4) == 1.5 and cost.raised(0.5, 0.0, 0.0).drafting(20) == pytest.approx(1.1)


def verdict(one: Sequence) -> StepResult:
    return StepResult(one, Accepted((), (5,)), (), 0)


def test_sequence_of_low_acceptance_is_not_drafted_for() -> None:
    made = policy(7, FLAT)
    good, bad = verdict(sequence()), verdict(sequence())
    bad.sequence.tree = Tree((10,), (-1,))
    for _ in range(20):
        made.learn([bad])
    assert made.select_for_drafting("heads", [good, bad]) == [good] and (
        made.counts.num_paused_sequence_steps,
        made.counts.num_steps_without_drafts,
    ) == (1, 0)
    assert made.select_for_drafting("heads", []) == [] and made.counts.num_steps_without_drafts == 0
    never = TreePolicy(SpeculationConfig(min_accepted=0.0), FLAT)
    assert never.select_for_drafting("heads", [good, bad]) == [good, bad]


def test_paused_sequences_are_probed_together_every_64_steps() -> None:
    """One step in 64 runs the heads for them, however many there are."""
    made = policy(7, FLAT)
    resting = [verdict(sequence()) for _ in range(5)]
    for number, one in enumerate(resting):
        one.sequence.tree = Tree((10,), (-1,))
        for _ in range(20 + number):
            made.learn([one])
    asked = [len(made.select_for_drafting("heads", resting)) for _ in range(640)]
    assert sorted(set(asked)) == [0, 5] and asked.count(5) == 10


def test_beams_of_a_group_are_paused_together() -> None:
    made = policy(7, FLAT)
    beams = [verdict(sequence()) for _ in range(2)]
    for beam in beams:
        group = {"running": [v.sequence for v in beams], "request": beam.sequence.request, "sampling_mode": BEAMS}
        beam.sequence.group = SimpleNamespace(**group)
        beam.sequence.tree = Tree((10,), (-1,))
    for number in (0, 1):
        assert made.select_for_drafting("heads", beams) == beams  # while one of them does well
        for _ in range(20):
            made.learn(beams[number : number + 1])
    assert made.select_for_drafting("heads", beams) == []


def test_nothing_is_drafted_after_the_last_token() -> None:
    made = policy(7, FLAT)
    last, other = (verdict(sequence(20, max_tokens=17 + left)) for left in (1, 2))
    assert (
        made.select_for_drafting("heads", [last, other]) == [other] and made.select_for_drafting("heads", [last]) == []
    )


def test_heads_are_paused_while_no_tree_fits_the_batch() -> None:
    """Prompts that take all rows, say: the scheduler cuts all trees to nothing."""
    made = policy(7, FLAT)

    def steps(count: int, room: bool) -> int:
        ran = 0
        for _ in range(count):
            one = sequence(chance=0.9)
            drafts = bool(made.select_for_drafting("heads", [verdict(one)]))
            one.candidates = one.candidates if drafts else {}
            trees = made.trees([one], 0, MAX_LEN)
            one.tree = trees[0][1] if trees and room else Tree((), ())
            made.learn([StepResult(one, Accepted(one.tree.tokens[:1], (5,)), (), 0)])
            ran += drafts
        return ran

    assert steps(50, room=True) == 50
    assert steps(320, room=False) <= 22
    assert steps(100, room=True) > 80


def served(made: TreePolicy, count: int, hidden: float = 0.0, hits: float = 0.6, size: int = 3) -> list[bool]:
    """Steps of a batch, a second each. hidden: what drafted ones take beyond; hits: of each tree. -> drafted?"""
    drafted, owed = [], 0.0
    for _ in range(count):
        batch = [sequence(chance=0.3) for _ in range(size)]
        if not made.select_for_drafting("heads", [verdict(one) for one in batch]):
            for one in batch:
                one.candidates = {}
        for one, tree, one.tree_values, _ in made.trees(batch, 0, MAX_LEN):
            one.tree = tree
        nodes = sum(len(one.tree) for one in batch)
        verdicts = []
        for one in batch:
            owed += hits if len(one.tree) else 0.0
            path = one.tree.tokens[: int(owed)]
            owed -= len(path)
            verdicts.append(StepResult(one, Accepted(tuple(range(len(path))), (*path, 5)), (), 0))
        made.learn(verdicts)
        made.observe(size, nodes, 1.0 + (hidden if nodes else 0.0))
        drafted.append(nodes > 0)
    return drafted


@pytest.mark.parametrize("hidden", [0.6, 1.5])
def test_drafts_of_unforeseen_cost_are_given_up(hidden: float) -> None:
    assert sum(served(policy(7, FLAT), 2000)[-1000:]) > 980
    dear = served(policy(7, FLAT), 6000, hidden)  # 1.6 tokens a step, in 1.7 times the time and more
    assert sum(dear[-3000:]) < 0.05 * 3000


def test_drafts_that_are_never_accepted_are_given_up() -> None:
    made = TreePolicy(SpeculationConfig(mode="auto", max_nodes=7, min_accepted=0.0), FLAT)
    made.calibrations["heads"].learn = lambda *_: None  # confidences that stay wrong
    assert sum(served(made, 6000, hits=0.0)[-3000:]) < 0.05 * 3000


def test_steps_without_drafts_are_counted() -> None:
    made = policy(7, STEEP)
    ran = 0
    for _ in range(300):
        if made.select_for_drafting("heads", [verdict(sequence())]):
            ran += 1
            made.trees([sequence()], 0, MAX_LEN)
    assert made.counts.num_steps_without_drafts == 300 - ran > 250


STATIC = TreePolicy(SpeculationConfig(mode="static", tree=((0,), (1,), (0, 0), (1, 0))))


@pytest.mark.parametrize("made", [policy(7, None), policy(7, FLAT), STATIC], ids=["no curve", "curve", "static"])
def test_expected_tokens_count_only_the_verified_nodes(made: TreePolicy) -> None:
    """The scheduler cuts trees where rows or blocks are short."""
    one = sequence(chance=0.8)
    tree = only_tree(made, one)
    chances = made.calibrations["heads"].calibrated(one.candidates["heads"], SAMPLED).confidences
    one.tree = tree.first(3)
    assert one.tree == Tree((10, 11, 20), (-1, -1, 0))
    expected = chances[0, 0] + chances[0, 1] + chances[0, 0] * chances[1, 0]
    made.learn([StepResult(one, Accepted((), (5,)), (), 0)])
    assert made.counts.num_expected == pytest.approx(float(expected), rel=1e-5)
    made.trees([], 0, MAX_LEN)
    made.learn([StepResult(one, Accepted((), (5,)), (), 0)])
    assert made.counts.num_expected == pytest.approx(float(expected), rel=1e-5), "promised once"


def test_measured_drafting_time_decides_whether_to_draft() -> None:
    made = policy(7, FLAT)
    for _ in range(40):
        made.observe_drafting("heads", 1, 100.0)  # the curve was measured with a tenth of a second
        made.observe_drafting("heads", 30, 0.1)
        made.trees([sequence(chance=0.9)], 0, MAX_LEN)
    assert not any(made.gate.should_draft(1) for _ in range(50))
    assert made.gate.should_draft(30)


def test_nodes_that_cost_more_than_their_rows_shrink_the_tree() -> None:
    made = policy(7, FLAT)
    assert len(only_tree(made, sequence(chance=0.5))) == 7
    for nodes in [0, 7] * 100:
        made.observe(1, nodes, 1.0 + 0.3 * nodes)
    assert len(only_tree(made, sequence(chance=0.5))) < 7


def test_heads_must_pay_over_lookup_alone() -> None:
    made = policy(7, FLAT)
    for _ in range(40):
        made.gate.drafted([0.9, 0.8], [0.9, 0.8])
    assert made.gate.gain(1) == pytest.approx(1 / 1.1), "they add nothing but their time"


def test_trees_of_lookup_alone_say_nothing_about_the_heads() -> None:
    made = policy(7, None)
    one = sequence()
    one.candidates = {"lookup": one.candidates["heads"]}
    one.tree = only_tree(made, one)
    made.learn([verdict(one)])
    assert one.acceptance.num_tries == 0 and made.counts.num_expected > 0


def explained(**fields: object) -> Sequence:
    """A sequence whose request asks for step records."""
    made = sequence(**fields)
    made.notes = StepNotes()
    return made


def test_notes_say_what_bounded_the_tree() -> None:
    cases = [
        (policy(7), explained(), MAX_LEN, TreeReason.MAX_NODES, 7),
        (policy(200), explained(heads=2), MAX_LEN, TreeReason.ALL, 30),
        (policy(7), explained(known=KEY_CHUNK - 2), MAX_LEN, TreeReason.ROOM, 2),
        (policy(7), explained(), 21, TreeReason.LAST_TOKEN, 0),
        (policy(7, STEEP), explained(), MAX_LEN, TreeReason.BUDGET, 0),
        (TreePolicy(SpeculationConfig(mode="static", tree=((0,), (1,)))), explained(), MAX_LEN, TreeReason.STATIC, 2),
    ]
    for made, one, max_len, reason, size in cases:
        assert sum(len(planned.tree) for planned in made.trees([one, sequence()], 0, max_len)[:1]) == size, reason
        assert one.notes.reason(size, has_candidates=True) is reason
        shown = one.notes.record(Tree(), (), (), 1, reason)
        assert shown.num_sequences == 2 and (shown.speed_up is not None) is (made.measured_cost is not None)
        assert shown.num_offered == (7 if reason is TreeReason.BUDGET else size)


def test_notes_say_why_the_heads_did_not_run() -> None:
    def undrafted(made: TreePolicy, one: Sequence, *drafters: str) -> TreeReason:
        one.notes.undrafted = TreeReason.OFF  # as after each step
        for name in drafters:
            made.select_for_drafting(name, [StepResult(one, Accepted((), (5,)), (), 0)])
        return one.notes.undrafted

    both = ("lookup", "heads")
    assert undrafted(policy(), explained(), *both) is TreeReason.NO_GUESS
    assert undrafted(policy(), explained(), "lookup") is TreeReason.NO_GUESS
    assert undrafted(policy(), explained()) is TreeReason.OFF
    assert undrafted(policy(), explained(known=20, max_tokens=18), *both) is TreeReason.LAST_TOKEN
    tired = explained()
    for _ in range(40):
        tired.acceptance.learn(0, 0.05)
    assert undrafted(policy(), tired, *both) is TreeReason.PAUSED
    poor = policy(7, STEEP)
    for _ in range(20):
        poor.gate.drafted([0.1])
    assert undrafted(poor, explained(), *both) is TreeReason.NO_GAIN


def test_notes_keep_the_values_of_the_verified_nodes() -> None:
    made, one = policy(), explained()
    tree = one.tree = only_tree(made, one).first(3)
    expected = tuple(one.tree_values[:3])
    made.learn([StepResult(one, Accepted((), (5,)), (), 0)])
    assert tuple(one.notes.values) == expected and len(tree) == 3
