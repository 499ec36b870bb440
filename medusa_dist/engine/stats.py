"""What the engine counts about itself: totals since start and gauges of now.

Owns the numbers. Not here: how they are exported (serve/metrics.py).
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineStats:
    """A snapshot. Counts are totals since the engine started; tokens are output tokens unless named otherwise."""

    num_running: int = 0
    num_waiting: int = 0
    kv_used_fraction: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_drafted: int = 0
    num_expected: float = 0.0  # accepted drafts that calibrated confidences predicted
    accepted_per_head: tuple[int, ...] = ()
    num_sequence_steps: int = 0  # steps that chose at least one token, per sequence
    num_steps_without_drafts: int = 0  # steps after which no heads ran, since drafts would not have paid
    num_paused_sequence_steps: int = 0  # times a sequence was left out of drafting, for its own record
    num_paused_sequences: int = 0  # running sequences that are left out now
    num_preemptions: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)  # of all steps; see clock.py

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that became output."""
        return sum(self.accepted_per_head)
