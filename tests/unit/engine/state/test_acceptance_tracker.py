"""A sequence whose drafts fail is paused, probed now and then, and resumed; in an engine, beside one that does well."""

from pathlib import Path

import numpy as np
import pytest

from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.state.acceptance_tracker import MIN_TRIES, AcceptanceTracker
from medusa_dist.medusa.trees.candidates import Candidates
from tests.support.tiny_engine import VOCAB, Oracle, Setting, decode, engine_over, request, save_model, tiny_config

FLOOR = 0.05


def test_tracker_pauses_after_min_tries_failures_and_not_before() -> None:
    record = AcceptanceTracker()
    for tries in range(MIN_TRIES):
        assert not record.is_paused(FLOOR), tries
        record.learn(0, FLOOR)
    assert record.is_paused(FLOOR) and not record.is_paused(0.0)


def test_one_accepted_draft_ends_the_pause() -> None:
    record = AcceptanceTracker()
    for _ in range(50):
        record.learn(0, FLOOR)
    record.learn(1, FLOOR)
    assert not record.is_paused(FLOOR)
    tries = 0
    while not record.is_paused(FLOOR):
        record.learn(0, FLOOR)
        tries += 1
    assert 20 < tries < 100  # and it falls asleep again if that was all


def test_one_accepted_draft_in_ten_keeps_a_sequence_active() -> None:
    record = AcceptanceTracker()
    for tries in range(400):
        record.learn(int(tries % 10 == 0), FLOOR)
        assert not record.is_paused(FLOOR)
    assert record.mean == pytest.approx(0.1, abs=0.02)


class Halves(Oracle):
    """Right for one request, never for the other; counts whom it was asked about."""

    def __init__(self, truth: dict[str, tuple[int, ...]]) -> None:
        super().__init__(truth, 1.0)
        self.asked: dict[str, int] = {}

    def draft(self, verdicts: list, scores: Scores) -> list[Candidates | None]:
        made = super().draft(verdicts, scores)
        for i, sequence in ((i, v.sequence) for i, v in enumerate(verdicts) if made[i] is not None):
            name = sequence.request.request_id
            self.asked[name] = self.asked.get(name, 0) + 1
            if name == "bad":
                coming = self.truth[name][sequence.num_output_tokens :][:1] or (0,)
                wrong = (coming[0] + 1 + np.arange(self.num_guesses)) % VOCAB
                made[i] = Candidates(np.tile(wrong, (self.num_heads, 1)), made[i].confidences)
        return made


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("nodes", [7, None], ids=["dynamic", "static"])
def test_sequence_without_accepted_drafts_is_paused_and_others_are_not(tmp_path: Path, nodes: int | None) -> None:
    save_model("llama", tmp_path)
    rank = EngineRank(tiny_config(tmp_path), tmp_path)
    each = [request(name, [3, 4, 5], seed=i, max_tokens=200, ignore_eos=True) for i, name in enumerate(("good", "bad"))]
    plain = decode(engine_over(rank, Setting()), each)
    truth = {name: output.token_ids for name, output in plain.outputs.items()}
    engine = engine_over(rank, Setting(nodes=nodes))
    oracle = Halves(truth)
    engine.drafters = {"heads": oracle}
    resting: list[int] = []
    run = decode(engine, each, after_step=lambda made: resting.append(made.stats().num_paused_sequences))
    assert {name: output.token_ids for name, output in run.outputs.items()} == truth
    # 199 steps or so: 16 tries, and one in 64 of the rest.
    assert MIN_TRIES <= oracle.asked["bad"] <= MIN_TRIES + 4
    assert run.outputs["bad"].stats.num_accepted == 0 and run.outputs["good"].stats.num_accepted > 100
    stats = engine.stats()
    assert max(resting) == 1 and 170 < stats.num_paused_sequence_steps < 190 and stats.num_steps_without_drafts == 0
    assert run.outputs["bad"].stats.num_drafted == sum(run.outputs["bad"].stats.drafted_per_head)
    assert len(stats.accepted_per_head) >= 3 and stats.num_sequence_steps > 200
