"""LoggedStep: one step of the engine, as it was; StepRecorder makes one for those who asked.

Owns what a record has, and makes samples of records. Not here: what a sample has (samples.py), the file of records
(log.py), how they are drawn (heads_tools/steps/).
Rank 0 only. Without an observer a step records nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.engine.steps.samples import MAX_SAMPLES, StepSample
from medusa_dist.medusa.trees.tree import Tree


@dataclass(frozen=True, slots=True)
class VerifiedTree:
    """The drafts of one sequence in one step, from all that were found to what became output.

    position: output tokens before this step; the root is the last of them, or of the prompt. num_ranked: drafts that
    the candidates gave; num_worthwhile: those of them whose expected gain exceeds their cost; the tree: those for
    which the step had tokens and KV blocks. values[i]: expected acceptance of node i; () if unknown. drafters[i]: who
    guessed it. accepted: nodes from the root down. tokens: emitted, the accepted ones and then the model's own choice.
    """

    request_id: str
    position: int
    root: int
    tree: Tree
    values: tuple[float, ...]
    drafters: tuple[tuple[str, ...], ...]
    num_ranked: int
    num_worthwhile: int
    accepted: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """A step. at: its begin, unix seconds. seconds: by phase. num_prompt_rows: rows of prompts, but for their last.

    drafted_for: by drafter, the sequences that it drafted for at the end of this step; 0 if it paused.
    queue_seconds: how long each request waited in the engine that ran for the first time.
    """

    step: int
    at: float
    seconds: Mapping[str, float]
    num_rows: int
    num_prompt_rows: int
    num_running: int
    num_waiting: int
    kv_used_fraction: float
    trees: tuple[VerifiedTree, ...]
    drafted_for: Mapping[str, int]
    queue_seconds: tuple[float, ...] = ()


Observer = Callable[[LoggedStep], None]


class LoggedLoad(Protocol):
    """What a record has of the scheduler."""

    queue_seconds: list[float]

    @property
    def running(self) -> Sized:
        """Running sequences."""

    @property
    def waiting(self) -> Sized:
        """Waiting groups."""

    @property
    def kv_used_fraction(self) -> float:
        """Fraction of the KV cache in use."""


class StepRecorder:
    """Collects a record while the engine makes its step. observers: called at the end of each step, in order."""

    def __init__(self) -> None:
        self.observers: list[Observer] = []
        self._at = 0.0
        self._before: dict[str, float] = {}
        self._rows = (0, 0, 0)  # of the plan: step, rows, prompt rows
        self._trees: tuple[VerifiedTree, ...] = ()
        self._drafted_for: dict[str, int] = {}

    def begin(self, seconds: Mapping[str, float]) -> None:
        """A step begins. seconds: by phase, of all steps before."""
        if self.observers:
            self._at, self._before, self._drafted_for = time.time(), dict(seconds), {}

    def verified(self, plan: Plan, results: Sequence[StepResult]) -> None:
        """Look before the policy learns and the trees are dropped."""
        if self.observers:
            num_roots = int((plan.needs_logits == 1).sum())
            num_known = int(plan.num_new_tokens.sum())
            self._rows = plan.step, num_known + int(plan.num_draft_tokens.sum()), num_known - num_roots
            self._trees = tuple(map(_tree_of, results))

    def drafted(self, drafter: str, num_sequences: int) -> None:
        """A drafter has drafted."""
        if self.observers:
            self._drafted_for[drafter] = num_sequences

    def end(self, seconds: Mapping[str, float], scheduler: LoggedLoad) -> None:
        """The step is over. scheduler: what it left."""
        if not self.observers:
            return
        spent = {phase: total - self._before.get(phase, 0.0) for phase, total in seconds.items()}
        step, rows, prompt_rows = self._rows
        record = LoggedStep(
            step,
            self._at,
            spent,
            rows,
            prompt_rows,
            len(scheduler.running),
            len(scheduler.waiting),
            scheduler.kv_used_fraction,
            self._trees,
            self._drafted_for,
            tuple(scheduler.queue_seconds),
        )
        for observe in self.observers:
            observe(record)


class StepSamples:
    """An observer of steps that keeps a sample of each until it is taken."""

    def __init__(self) -> None:
        self._samples: deque[StepSample] = deque(maxlen=MAX_SAMPLES)

    def __call__(self, record: LoggedStep) -> None:
        """Keep a step's sample."""
        self._samples.append(
            StepSample(
                record.seconds,
                sum(len(tree.tree) for tree in record.trees),
                tuple(len(tree.tokens) for tree in record.trees),
                record.queue_seconds,
            )
        )

    def take(self) -> list[StepSample]:
        """All since the last call."""
        samples = list(self._samples)
        self._samples.clear()
        return samples


def _tree_of(result: StepResult) -> VerifiedTree:
    sequence = result.sequence
    size = len(sequence.tree)
    return VerifiedTree(
        request_id=sequence.request.request_id,
        position=sequence.num_output_tokens,
        root=sequence.tokens[-1],
        tree=sequence.tree,
        values=tuple(sequence.tree_values[:size]),
        drafters=tuple(sequence.tree_drafters[:size]),
        num_ranked=max(sequence.num_ranked, sequence.num_worthwhile),
        num_worthwhile=sequence.num_worthwhile,
        accepted=result.hits,
        tokens=result.accepted.tokens,
    )
