"""What is counted for Prometheus, on instruments that remember what they were told."""

import time
from collections import defaultdict

import pytest

from medusa_dist.engine.messages import OutputBatch
from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.samples import StepSample
from medusa_dist.errors import EngineError, GroupError
from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.serve import metrics
from medusa_dist.serve.inflight import InflightRequest
from medusa_dist.serve.metrics import ServiceMetrics

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    """(name, labels other than model) -> value."""
    made: Samples = defaultdict(float)

    class Instrument:
        def __init__(self, name: str, **_: object) -> None:
            self.name = name.removeprefix("medusa_dist_")

        def key(self, tags: dict[str, str]) -> tuple[str, ...]:
            assert tags["model"] == "m"
            return (self.name, *(value for label, value in tags.items() if label != "model"))

        def inc(self, amount: float, tags: dict[str, str]) -> None:
            made[self.key(tags)] += amount

        def set(self, value: float, tags: dict[str, str]) -> None:
            made[self.key(tags)] = value

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self.default_tags = tags

        def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
            made[*self.key(tags or self.default_tags), "count"] += 1
            made[*self.key(tags or self.default_tags), "sum"] += value

    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, name, Instrument)
    return made


def batch(generation: int = 0, samples: tuple[StepSample, ...] = (), **counts: object) -> OutputBatch:
    return OutputBatch(generation, 0, (), 0.0, EngineStats(**counts), samples)


def inflight(asked_at: float = 0.0) -> InflightRequest:
    return InflightRequest(Request(request_id="x", prompt_ids=(1,), params=SamplingParams(), seed=0), asked_at)


def test_drafted_and_accepted_tokens_are_counted_per_head(samples: Samples) -> None:
    made = ServiceMetrics("m")
    pending = inflight()
    for drafted, accepted in (((3, 2, 1), (1, 1, 0)), ((3,), (1,))):
        stats = SpeculationStats(1, sum(drafted), accepted, drafted)
        made.on_output(pending, Output(request_id="x", token_ids=(1, 2), heads=(1, 0), stats=stats), 1.0)
    assert [samples["drafted_tokens_total", head] for head in "123"] == [6, 2, 1]
    assert [samples["accepted_tokens_total", head] for head in "123"] == [2, 1, 0]
    assert samples["sequence_steps_total",] == 2 and samples["tokens_total",] == 4


def test_predicted_tokens_per_step_is_the_mean_of_expected_tokens(samples: Samples) -> None:
    made = ServiceMetrics("m")
    made.on_batch(batch(num_expected=0.0, num_sequence_steps=0), 1)
    assert ("predicted_tokens_per_step",) not in samples
    for step in range(1, 6):
        made.on_batch(batch(num_expected=0.6 * step, num_sequence_steps=step, num_steps=step), 1)
    assert samples["predicted_tokens_per_step",] == pytest.approx(1.6)
    assert samples["expected_tokens_total",] == pytest.approx(3.0) and samples["steps_total",] == 5


def test_paused_sequences_and_steps_without_drafts_are_counted(samples: Samples) -> None:
    made = ServiceMetrics("m")
    made.on_batch(batch(num_steps_without_drafts=3, num_paused_sequence_steps=5, num_paused_sequences=2), 1)
    made.on_batch(batch(num_steps_without_drafts=7, num_paused_sequence_steps=6, num_paused_sequences=1), 1)
    assert (
        samples["steps_without_drafts_total",] == 7
        and samples["paused_sequence_steps_total",] == 6
        and samples["paused_sequences",] == 1
    )
    old = [samples[name,] for name in ("steps_off_total", "rested_total", "resting_sequences")]
    assert old == [7, 6, 1], "the former names go on with the same values"
    made.on_batch(batch(generation=1, num_steps_without_drafts=2), 1)  # a new group counts from zero
    assert samples["steps_without_drafts_total",] == 9


def test_batches_are_counted_by_status_and_one_that_is_empty_again_is_zero(samples: Samples) -> None:
    made = ServiceMetrics("m")
    made.on_batches({"validating": 1, "in_progress": 2})
    assert samples["batches", "validating"] == 1 and samples["batches", "in_progress"] == 2
    made.on_batches({"in_progress": 1})
    assert samples["batches", "validating"] == 0 and samples["batches", "in_progress"] == 1
    for is_ok in (True, True, False):
        made.on_batch_line(is_ok)
    made.on_batch_end("cancelled")
    assert samples["batch_lines_total", "completed"] == 2 and samples["batch_lines_total", "failed"] == 1
    assert samples["batches_ended_total", "cancelled"] == 1


def test_steps_are_observed_by_phase_with_their_tokens_drafts_and_queue_times(samples: Samples) -> None:
    made = ServiceMetrics("m")
    steps = (
        StepSample({"forward": 0.25, "draft": 0.5}, 7, (3, 1), (0.125,)),
        StepSample({"forward": 0.25, "draft": 0.0}, 0, (1,), ()),
        StepSample({"forward": 0.5}, 0, (), ()),  # a part of a prompt
    )
    made.on_batch(batch(samples=steps), 1)
    assert samples["step_seconds", "forward", "count"] == 3 and samples["step_seconds", "forward", "sum"] == 1.0
    assert samples["step_seconds", "draft", "count"] == 2
    assert samples["step_nodes", "count"] == 2 and samples["step_nodes", "sum"] == 7
    assert samples["step_tokens", "count"] == 2 and samples["step_tokens", "sum"] == 5
    assert samples["sequence_step_tokens", "count"] == 3 and samples["sequence_step_tokens", "sum"] == 5
    assert samples["queue_seconds", "count"] == 1 and samples["queue_seconds", "sum"] == 0.125


def test_only_completed_requests_have_a_duration(samples: Samples) -> None:
    made = ServiceMetrics("m")
    for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, None):
        pending = inflight(time.monotonic() - 10.0)
        if reason is not None:
            pending.deliver(Output(request_id="x", finish_reason=reason), 0.0)
        made.on_end(pending)
    failed = inflight()
    failed.fail(EngineError("gone"))
    made.on_end(failed)
    assert samples["request_seconds", "count"] == 2 and samples["request_seconds", "sum"] == pytest.approx(20.0, abs=5)
    assert [samples["requests_ended_total", name] for name in ("stop", "length", "abort", "cancelled", "error")] == [
        1
    ] * 5


def test_what_seldom_changes_can_be_exported_again_and_again(samples: Samples) -> None:
    """Ray drops gauges that are not set anew."""
    made = ServiceMetrics("m")
    made.on_start({"load": 2.5})
    made.on_batch(batch(generation=3), 0)
    for fails, is_up in ((False, 1), (True, 0)):
        if fails:
            made.on_failure(GroupError("lost"))
            assert samples["group_up",] == 0
        samples.clear()
        made.refresh()
        assert samples == {("group_up",): is_up, ("group_start_seconds", "load"): 2.5, ("generation",): 3}


def test_generation_is_shown_from_the_first_batch_on(samples: Samples) -> None:
    made = ServiceMetrics("m")
    made.on_batch(batch(generation=0), 0)
    assert ("generation",) in samples and samples["generation",] == 0
    made.on_batch(batch(generation=2), 0)
    assert samples["generation",] == 2


def test_labels_and_limits_keep_the_number_of_series_low() -> None:
    """Of the histograms of one replica; a label with unbounded values would be the end of a Prometheus."""
    limits = [metrics.FIRST_TOKEN_S, metrics.TOKEN_S, metrics.QUEUE_S, metrics.REQUEST_S, metrics.PHASE_S]
    limits += [metrics.SEQUENCE_TOKENS, metrics.STEP_TOKENS, metrics.STEP_NODES]
    assert all(one == sorted(set(one)) and one[0] > 0 for one in limits)
    num_phases = 9
    num_series = sum((len(one) + 3) * (num_phases if one is metrics.PHASE_S else 1) for one in limits)
    assert num_series < 300
