"""EngineStats: counters since start and current gauges of one engine.

Owns the numbers. Not here: how they are exported (serve/metrics.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineStats:
    """A snapshot. Counters are totals since the engine started; tokens are output tokens unless stated otherwise."""

    num_running: int = 0
    num_waiting: int = 0
    kv_used_fraction: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_drafted: int = 0
    drafted_by: Mapping[str, int] = field(default_factory=dict)  # verified draft tokens by drafter
    accepted_by: Mapping[str, int] = field(default_factory=dict)  # those accepted
    num_expected: float = 0.0  # accepted draft tokens predicted by the calibrated confidences
    accepted_per_head: tuple[int, ...] = ()
    num_sequence_steps: int = 0  # steps that emitted at least one token, summed over sequences
    num_steps_without_drafts: int = 0  # steps after which drafting was skipped, since it would not pay
    num_paused_sequence_steps: int = 0  # sequence-steps without drafts because recent acceptance was too low
    num_paused_sequences: int = 0  # running sequences that are paused now
    num_preemptions: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)  # of all steps; see runner/phase_timer.py

    @property
    def num_accepted(self) -> int:
        """Draft tokens that became output."""
        return sum(self.accepted_per_head)
