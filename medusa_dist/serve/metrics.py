"""Prometheus metrics of a replica, on Ray's metrics port; Ray adds the prefix `ray_`.

Owns names, labels and bucket limits. Not here: counting in the engine (engine/stats.py).
Ray Serve adds the labels application, deployment and replica; this module adds model.
"""

import time

from ray.serve.metrics import Counter, Gauge, Histogram

from medusa_dist.engine.messages import OutputBatch
from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.samples import StepSample
from medusa_dist.errors import GroupError
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.serve.inflight import InflightRequest

FIRST_TOKEN_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
TOKEN_S = [0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.5, 5.0]
QUEUE_S = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
REQUEST_S = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0]
PHASE_S = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]
SEQUENCE_TOKENS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0]
STEP_TOKENS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
STEP_NODES = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]  # Ray wants limits above 0
MEMORY = 0.98  # of the moving average of tokens per step: about the last 50 batches
# Names until 0.1.0, still exported with the same values, so that dashboards made for them go on.
FORMER_NAMES = {
    "steps_without_drafts": "steps_off",
    "paused_sequence_steps": "rested",
    "paused_sequences": "resting_sequences",
    "group_failures": "group_falls",
}


class ServiceMetrics:
    """Called by replica, supervisor and the worker of batches, on their event loop. model: the name clients use."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._first_token = self._histogram(
            "time_to_first_token_seconds",
            "From the request to its first token, measured in the replica.",
            FIRST_TOKEN_S,
        )
        self._token = self._histogram(
            "time_per_token_seconds", "Time between outputs of a request, per output token.", TOKEN_S
        )
        self._request = self._histogram(
            "request_seconds", "From a request to its end, for requests that were completed.", REQUEST_S
        )
        self._queue = self._histogram(
            "queue_seconds", "From a request's arrival in the engine to its first step.", QUEUE_S
        )
        self._sequence_tokens = self._histogram(
            "sequence_step_tokens", "Tokens that a step gave to a sequence: accepted drafts + 1.", SEQUENCE_TOKENS
        )
        self._step_tokens = self._histogram("step_tokens", "Tokens of a step, all sequences.", STEP_TOKENS)
        self._step_nodes = self._histogram("step_nodes", "Draft tokens verified by a step, all sequences.", STEP_NODES)
        self._phase = self._histogram("step_seconds", "Wall time of a step, by phase.", PHASE_S, "phase")
        self._is_up = False
        self._start_seconds: dict[str, float] = {}
        self._generation = -1
        self._before = EngineStats()
        self._batch_states: set[str] = set()
        self._recent_tokens = self._recent_steps = 0.0
        self._recent_expected = self._recent_verified = 0.0

    def on_output(self, pending: InflightRequest, output: Output, now: float) -> None:
        """An output reached the replica; pending is in the state before it."""
        count = len(output.token_ids)
        if count and pending.last_token_at is None:
            self._first_token.observe(now - pending.asked_at)
        elif count and pending.last_token_at is not None:
            self._token.observe((now - pending.last_token_at) / count)
        self._count("tokens", "Output tokens.", count)
        for head, drafted in enumerate(output.stats.drafted_per_head, start=1):
            self._count("drafted_tokens", "Draft tokens that were verified, by depth.", drafted, head=str(head))
        self._count("sequence_steps", "Steps that chose at least one token, per sequence.", output.stats.num_steps)
        for head, accepted in enumerate(output.stats.accepted_per_head, start=1):
            self._count("accepted_tokens", "Accepted draft tokens, by depth.", accepted, head=str(head))
        for name, drafted in output.stats.drafted_by.items():
            self._count("drafter_drafted_tokens", "Draft tokens that were verified, by drafter.", drafted, drafter=name)
        for name, accepted in output.stats.accepted_by.items():
            self._count("drafter_accepted_tokens", "Accepted draft tokens, by drafter.", accepted, drafter=name)
        self._recent_tokens = self._recent_tokens * MEMORY + count
        self._recent_steps = self._recent_steps * MEMORY + output.stats.num_steps

    def on_batch(self, batch: OutputBatch, num_requests: int) -> None:
        """A batch arrived on the output stream."""
        stats = batch.stats
        before = self._before if batch.generation == self._generation else EngineStats()
        self._generation, self._before = batch.generation, stats
        self._show_generation()
        self._gauge("requests", "Requests running or waiting in the replica.", num_requests)
        self._gauge("running_sequences", "Sequences decoded in the current step.", stats.num_running)
        self._gauge("waiting_sequences", "Sequences waiting to be scheduled.", stats.num_waiting)
        self._gauge("kv_used_fraction", "Fraction of the KV cache in use.", stats.kv_used_fraction)
        if self._recent_steps >= 1.0:
            self._gauge(
                "tokens_per_step",
                "Recent mean of tokens per step and sequence.",
                self._recent_tokens / self._recent_steps,
            )
        self._count("steps", "Steps of the engine.", stats.num_steps - before.num_steps)
        self._count("prompt_tokens", "Prompt tokens computed.", stats.num_prompt_tokens - before.num_prompt_tokens)
        self._count(
            "preemptions",
            "Sequences preempted, which lost their KV blocks.",
            stats.num_preemptions - before.num_preemptions,
        )
        self._count(
            "steps_without_drafts",
            "Steps without draft tokens because no gain was predicted.",
            stats.num_steps_without_drafts - before.num_steps_without_drafts,
        )
        self._count(
            "paused_sequence_steps",
            "Sequence-steps without draft tokens because recent acceptance was too low.",
            stats.num_paused_sequence_steps - before.num_paused_sequence_steps,
        )
        self._gauge(
            "paused_sequences",
            "Running sequences without draft tokens because recent acceptance was too low.",
            stats.num_paused_sequences,
        )
        self._predict(stats, before)
        for phase, seconds in stats.phase_seconds.items():
            spent = seconds - before.phase_seconds.get(phase, 0.0)
            self._count("phase_seconds", "Wall time of steps, by phase.", spent, phase=phase)
        for sample in batch.samples:
            self._on_step(sample)

    def _on_step(self, sample: StepSample) -> None:
        for phase, seconds in sample.seconds.items():
            self._phase.observe(seconds, tags={"model": self._model, "phase": phase})
        for seconds in sample.queue_seconds:
            self._queue.observe(seconds)
        if sample.sequence_tokens:  # else it computed a part of a prompt alone
            self._step_nodes.observe(sample.num_nodes)
            self._step_tokens.observe(sum(sample.sequence_tokens))
        for count in sample.sequence_tokens:
            self._sequence_tokens.observe(count)

    def _predict(self, stats: EngineStats, before: EngineStats) -> None:
        """Tokens per step as predicted by calibrated confidences, to compare with the measured value."""
        expected = stats.num_expected - before.num_expected
        self._count("expected_tokens", "Draft tokens expected to be accepted.", expected)
        self._recent_expected = self._recent_expected * MEMORY + expected
        self._recent_verified = self._recent_verified * MEMORY + stats.num_sequence_steps - before.num_sequence_steps
        if self._recent_expected > 0.0 and self._recent_verified >= 1.0:
            predicted = 1.0 + self._recent_expected / self._recent_verified
            self._gauge(
                "predicted_tokens_per_step", "Predicted recent mean of tokens per step and sequence.", predicted
            )

    def on_end(self, pending: InflightRequest) -> None:
        """A request left the replica."""
        if pending.outcome in (FinishReason.STOP, FinishReason.LENGTH):
            self._request.observe(time.monotonic() - pending.asked_at)
        self._count(
            "requests_ended",
            "Ended requests, by finish reason, error, or cancelled.",
            1,
            reason=pending.outcome or "cancelled",
        )

    def on_batches(self, states: dict[str, int]) -> None:
        """The batches of /v1/batches that are not over, by status; for the replica that runs them."""
        for status in self._batch_states | states.keys():
            self._gauge("batches", "Batches that are not over, by status.", states.get(status, 0), status=status)
        self._batch_states |= states.keys()

    def on_batch_line(self, is_ok: bool) -> None:
        """A line of a batch is finished."""
        outcome = "completed" if is_ok else "failed"
        self._count("batch_lines", "Finished lines of batches, completed or failed.", 1, outcome=outcome)

    def on_batch_end(self, status: str) -> None:
        """A batch is over."""
        self._count("batches_ended", "Batches that ended, by their last status.", 1, status=status)

    def on_failure(self, error: GroupError) -> None:
        """The group failed."""
        self._count("group_failures", "Times the tensor-parallel group failed.", 1)
        self._is_up = False
        self.refresh()

    def on_start(self, seconds: dict[str, float]) -> None:
        """A group has started; seconds: duration of each phase of its start."""
        self._is_up, self._start_seconds = True, dict(seconds)
        self.refresh()

    def refresh(self) -> None:
        """Export what seldom changes; call it often. Ray drops a gauge that was not set for 20 s."""
        self._gauge("group_up", "1 while the group decodes.", int(self._is_up))
        for phase, duration in self._start_seconds.items():
            self._gauge(
                "group_start_seconds", "Duration of the current group's start, by phase.", duration, phase=phase
            )
        if self._generation >= 0:
            self._show_generation()

    def _show_generation(self) -> None:
        self._gauge("generation", "Number of the current group: how often it was restarted.", self._generation)

    def _count(self, name: str, text: str, amount: float, **labels: str) -> None:
        if name not in self._counters:
            keys = ("model", *labels)
            self._counters[name] = Counter(f"medusa_dist_{name}_total", description=text, tag_keys=keys)
        if amount > 0:
            self._counters[name].inc(amount, tags={"model": self._model, **labels})
        if (old := FORMER_NAMES.get(name)) is not None:
            self._count(old, f"Deprecated: renamed to medusa_dist_{name}_total.", amount, **labels)

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"medusa_dist_{name}", description=text, tag_keys=("model", *labels))
        self._gauges[name].set(value, tags={"model": self._model, **labels})
        if (old := FORMER_NAMES.get(name)) is not None:
            self._gauge(old, f"Deprecated: renamed to medusa_dist_{name}.", value, **labels)

    def _histogram(self, name: str, text: str, boundaries: list[float], *labels: str) -> Histogram:
        keys = ("model", *labels)
        histogram = Histogram(f"medusa_dist_{name}", description=text, boundaries=boundaries, tag_keys=keys)
        if not labels:
            histogram.set_default_tags({"model": self._model})
        return histogram
