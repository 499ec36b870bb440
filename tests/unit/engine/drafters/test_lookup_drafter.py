import numpy as np
import pytest
import torch

from medusa_dist.engine.drafters.lookup_drafter import LookupDrafter
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.calibration import MAX_DEPTH
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

NOTHING = Scores(np.zeros(0), {}, torch.zeros(0))
PROMPT = (1, 2, 3, 4, 5, 6, 1, 2)


def sequence(prompt: tuple[int, ...] = PROMPT, **params: object) -> Sequence:
    request = Request(request_id="x", prompt_ids=prompt, params=SamplingParams(**params), seed=0)
    return SingleSequence(request).root


def draft(drafter: LookupDrafter, *sequences: Sequence) -> list[Candidates | None]:
    return drafter.draft([StepResult(s, Accepted((), ()), (), 0) for s in sequences], NOTHING)


def best_path(made: Candidates | None) -> list[int]:
    assert made is not None
    return [made.guesses(place)[0][0] for place in range(len(made.tokens))]


def test_continuation_of_the_prompt_and_of_the_output_is_drafted() -> None:
    drafter, one = LookupDrafter(4), sequence()
    assert best_path(*draft(drafter, one)) == [3, 4, 5, 6]
    one.tokens += [9, 7, 8, 9, 7]
    assert best_path(*draft(drafter, one)) == [8, 9, 7, 8], "8 9 7 of the output, then the copy copies itself"
    one.tokens += [8, 30]
    assert draft(drafter, one) == [None]


def test_sequences_that_ended_or_decline_or_do_not_repeat_get_none() -> None:
    ended, declined, fresh, one = sequence(), sequence(speculation=False), sequence((1, 2, 3)), sequence()
    ended.finish_reason = FinishReason.STOP
    made = draft(LookupDrafter(4), ended, declined, fresh, one)
    assert made[:3] == [None] * 3 and made[3] is not None


@pytest.mark.parametrize(("max_nodes", "depth"), [(0, 1), (5, 5), (255, MAX_DEPTH)])
def test_chains_are_as_long_as_a_step_can_verify(max_nodes: int, depth: int) -> None:
    drafter = LookupDrafter(max_nodes)
    assert drafter.max_depth == depth == len(best_path(*draft(drafter, sequence((*range(50), 0, 1)))))


def test_measure_times_lookup_of_many_sequences() -> None:
    assert 0 < LookupDrafter(7).measure(1, torch.float32) < LookupDrafter(7).measure(40, torch.float32)


def test_beams_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    beam = sequence()
    monkeypatch.setattr(beam.group, "is_beam_search", True)
    assert draft(LookupDrafter(4), beam) == [None]
