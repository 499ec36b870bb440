"""Selecting for beams: which row is used, with which processors, and which sequence continues which beam."""

import numpy as np
import pytest
import torch

from medusa_dist.engine.beam.group import BeamGroup
from medusa_dist.engine.beam.result import BeamResult
from medusa_dist.engine.beam.select import select_beams
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.block_pool import BlockPool
from medusa_dist.engine.state.limits import Limits
from medusa_dist.errors import EngineError
from medusa_dist.medusa.beam.search import BeamRules, Search
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.tree import Tree
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

V, EOS = 13, (2,)


def row(**best: float) -> torch.Tensor:
    """Logits: t5=3.0 makes token 5 stand out."""
    logits = torch.zeros(V)
    for name, value in best.items():
        logits[int(name[1:])] = value
    return logits


def group_of(outputs: list[tuple[int, ...]], scores: list[float], name: str = "x", **params: object) -> BeamGroup:
    """A search under way: beams with these outputs, each with a place."""
    asked = SamplingParams(beam_width=2, max_tokens=9, **params)
    request = Request(request_id=name, prompt_ids=(4, 6), params=asked, seed=0)
    group = BeamGroup(request, BeamRules(2, 9, frozenset(EOS)))
    group.admit()
    if len(outputs) > 1:
        group.beams, group.idle = group.sequences, []
    for beam, output in zip(group.beams, outputs, strict=True):
        beam.tokens = [4, 6, *output]
    group.search = Search(tuple(outputs), tuple(scores))
    return group


def judge(groups: list[BeamGroup], logits: list[torch.Tensor]) -> list[BeamResult]:
    beams, first = [], 0
    for group in groups:
        for beam in group.beams:
            beams.append((beam, first))
            first += 1 + len(beam.tree)
    assert first == len(logits)
    whole, hidden = dict(enumerate(logits)), torch.arange(first, dtype=torch.float32)[:, None]
    return select_beams(Scores(np.full(first, -1, dtype=np.int64), whole, hidden), beams, EOS)


def test_selecting_for_no_beams_gives_no_results() -> None:
    assert select_beams(Scores(np.zeros(0, dtype=np.int64), {}, torch.zeros(0, 1)), [], EOS) == []


def test_prompt_forks_into_all_beams() -> None:
    group = group_of([()], [0.0])
    first, second = judge([group], [row(t5=4.0, t7=3.0)])
    assert (first.sequence, second.sequence) == (group.root, group.idle[0])
    assert first.source is second.source is group.root
    assert (first.accepted, second.accepted) == (Accepted((), (5,)), Accepted((), (7,)))
    expected = torch.log_softmax(row(t5=4.0, t7=3.0), 0)[[5, 7]].tolist()
    assert first.traversal.search.scores == pytest.approx(expected)


def test_beam_keeps_its_sequence_and_its_fork_takes_a_free_one() -> None:
    group = group_of([(8,), (9,)], [-1.0, -9.0])
    one, other = group.beams
    one.tree, other.tree = Tree((5, 7, 1), (-1, -1, 1)), Tree((5,), (-1,))
    rows = [row(t5=9.0, t7=9.0), row(t3=5.0), row(t1=9.0), row(t10=6.0), row(), row()]
    first, second = judge([group], rows)
    # Level 1: 5 and 7 behind the first beam, both verified. Level 2: 1 behind 7, and 3 behind 5, which is not drafted.
    assert first.traversal.search.outputs == ((8, 7, 1), (8, 5, 3))
    assert (first.sequence, first.source, first.accepted) == (one, one, Accepted((1,), (7, 1)))
    assert (second.sequence, second.source, second.accepted) == (other, one, Accepted((0,), (5, 3)))
    assert (first.last_row, second.last_row) == (2, 1), "what the heads read"
    assert (first.hits, second.hits) == ((0, 1), ()), "each verdict tells of its own sequence's tree"


def test_penalties_bias_and_min_tokens_count_the_path() -> None:
    """A penalty for what was said, a bias, and no end before min_tokens, as transformers applies them."""
    group = group_of([(8,), (9,)], [0.0, -50.0], repetition_penalty=1.5, min_tokens=3, logit_bias=((1, -3.0),))
    group.beams[0].tree = Tree((5, 7), (-1, -1))
    logits = [row(t5=6.0, t7=5.9, t2=9.0), row(t5=6.0, t7=5.0), row(t7=6.0, t5=5.9), row()]
    verdicts = judge([group], logits)
    assert verdicts[0].traversal.num_levels == 2
    search = verdicts[0].traversal.search
    log_p = torch.log_softmax(logits[0], 0)
    assert all(output[1] in (5, 7) for output in search.outputs) and not search.finished
    after = torch.log_softmax(logits[1], 0)
    after[[4, 6, 8, 5]] *= 1.5  # all log-probabilities are below zero
    best = max((float(log_p[5] + after[t]), t) for t in range(V) if t not in (1, 2))
    assert max(search.scores) == pytest.approx(best[0], abs=1e-5)


def test_finished_search_accepts_no_tokens_and_keeps_its_beams() -> None:
    group = group_of([tuple([8] * 8), tuple([9] * 8)], [-1.0, -1.1])
    verdicts = judge([group], [row(t5=5.0), row(t6=5.0)])
    assert verdicts[0].traversal.search.is_over and len(verdicts[0].traversal.search.finished) == 2
    assert [v.sequence for v in verdicts] == [v.source for v in verdicts] == group.beams
    assert all(v.accepted == Accepted((), ()) for v in verdicts)


def test_groups_selected_together_equal_groups_selected_alone() -> None:
    """Each as it is alone, though they stop at different levels."""

    def make() -> list[BeamGroup]:
        first, second = group_of([(8,), (9,)], [-1.0, -9.0]), group_of([()], [0.0], name="y")
        first.beams[0].tree = Tree((5, 7), (-1, -1))
        return [first, second]

    rows = [row(t5=9.0, t7=9.0), row(t3=5.0), row(t1=9.0), row(), row(t4=3.0, t8=2.0)]
    together = judge(make(), rows)
    first, second = make()
    alone = judge([first], rows[:4]) + judge([second], rows[4:])
    assert [v.traversal.search for v in together] == [v.traversal.search for v in alone]
    assert [v.traversal.num_levels for v in together] == [2, 2, 1, 1]


def test_verified_rows_of_an_incomplete_level_are_reused_in_the_next_step() -> None:
    """5 behind the first beam wins and was verified, and 1 behind it; the other winner, 3, was not drafted."""
    group = group_of([(8,), (9,)], [-1.0, -1.1])
    group.beams[0].tree, group.beams[1].tree = Tree((5, 7, 1), (-1, -1, 0)), Tree((5,), (-1,))
    rows = [row(t5=9.0), row(t4=6.0), row(t6=9.0), row(t10=5.0), row(t3=9.0), row()]
    first, second = judge([group], rows)
    assert first.traversal.search.outputs == ((8, 5), (9, 3)) and first.traversal.num_levels == 1
    assert first.memory is second.memory and set(first.memory) == {(0, ()), (0, (1,))}
    for place, logits in (((0, ()), rows[1]), ((0, (1,)), rows[3])):
        best = torch.log_softmax(logits, 0).topk(1)
        assert first.memory[place].ranked[0] == (int(best.indices), pytest.approx(float(best.values), abs=1e-5))
        assert first.memory[place].hidden.tolist() == [1.0 if place[1] == () else 3.0]
    # One step on: the first beam takes 1, of which all is known; the other's way was not remembered.
    group.advance([first, second], Limits(4, 64, 50, V, EOS), BlockPool(8))
    assert group.memory is first.memory and group.was_drafted
    one, other = judge([group], [row(t1=9.0), row(t4=9.0)])
    assert one.traversal.search.outputs == ((8, 5, 1), (9, 3, 4))
    assert one.memory == {(0, ()): first.memory[0, (1,)]}
    assert other.traversal.chosen == (((0, (1,)), (1, (4,))),)


def test_nan_row_after_an_unused_draft_is_ignored() -> None:
    group = group_of([(8,), (9,)], [-1.0, -1.1])
    group.beams[0].tree = Tree((5,), (-1,))
    first, _ = judge([group], [row(t5=9.0), torch.full((V,), float("nan")), row(t3=9.0)])
    assert first.traversal.search.outputs == ((8, 5), (9, 3))


def test_beam_scores_do_not_depend_on_the_number_of_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(V, generator=generator) * 4 for _ in range(5)]
    groups = [group_of([()], [0.0], name=f"g{i}") for i in range(5)]
    together = judge(groups, rows)
    for i in range(5):
        assert judge([group_of([()], [0.0])], [rows[i]])[0].traversal.search == together[2 * i].traversal.search


def test_nan_logits_are_an_engine_error_naming_the_request() -> None:
    good, bad = group_of([()], [0.0]), group_of([()], [0.0], name="y")
    with pytest.raises(EngineError, match=r"request y: the model's logits are NaN"):
        judge([good, bad], [row(), torch.full((V,), float("nan"))])
