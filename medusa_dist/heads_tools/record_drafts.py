"""Records the served model's own answers, and its heads' guesses at every position.

Owns the recording, through the engine's own step. Not here: what is computed from it (medusa/trees/replay.py), the
prompts (tools/prompts.py).
Each step runs the heads but verifies no drafts, so that no position of an answer is skipped.
"""

from collections.abc import Callable, Sequence

from medusa_dist.config import HEADS
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.draft_policy import DraftCounts, DraftPolicy, PlannedTree
from medusa_dist.engine.state.sequence import Sequence as Running
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.errors import ConfigError
from medusa_dist.llm import LLM
from medusa_dist.medusa.trees.calibration import GREEDY, SAMPLED
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.replay import RecordedAnswer
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tools.progress import ProgressText


class _Recording:
    """Verifies nothing and keeps the guesses: (request id, tokens emitted before) -> candidates."""

    def __init__(self) -> None:
        self.counts = DraftCounts()
        self.measured_cost = None
        self.guesses: dict[tuple[str, int], Candidates] = {}

    def trees(self, decoding: list[Running], num_other_rows: int, max_model_len: int) -> list[PlannedTree]:
        """No trees: nothing is verified."""
        return []

    def select_for_drafting(self, drafter: str, results: list[StepResult]) -> list[StepResult]:
        """All: the guesses after a last token are evaluated too."""
        return results

    def learn(self, results: Sequence[StepResult]) -> None:
        """The candidates were drafted after the last token known before this step."""
        for sequence in (result.sequence for result in results):
            if HEADS in sequence.candidates:
                self.guesses[sequence.request.request_id, sequence.num_output_tokens] = sequence.candidates[HEADS]

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """Ignored."""

    def observe_drafting(self, drafter: str, num_sequences: int, seconds: float) -> None:
        """Ignored."""

    def is_paused(self, sequence: Running) -> bool:
        """Never, so that all sequences are recorded."""
        return False


def engine_with_heads(llm: LLM) -> Engine:
    """The engine of this process. Raises ConfigError if it has no heads."""
    if HEADS not in llm.engine.drafters:
        raise ConfigError(
            f"this command needs heads, and there are none for this model: speculation is {llm.facts['speculation']}"
        )
    return llm.engine


def watched_engine(engine: Engine, policy: DraftPolicy) -> Engine:
    """Another engine over the same model, KV blocks and heads, with its own policy; the first one must be idle."""
    assert not engine.has_work
    scheduler = Scheduler(engine.scheduler.limits, engine.scheduler.pool, policy, engine.ranks.generation)
    return Engine(scheduler, engine.ranks, engine.token_selector, engine.drafters, policy)


def record(
    engine: Engine,
    prompts: Sequence[tuple[Sequence[int], str]],
    params: SamplingParams,
    report: Callable[[str], None] = lambda _: None,
) -> list[RecordedAnswer]:
    """Answer all prompts (token ids, category), as many at a time as fit. report: called with the progress.

    Prompt i has seed i if params sample. Raises RequestError for a prompt that cannot be served.
    """
    recording = _Recording()
    watched = watched_engine(engine, recording)
    for i, (ids, _) in enumerate(prompts):
        watched.submit(Request(request_id=str(i), prompt_ids=tuple(ids), params=params, seed=i))
    tokens: list[list[int]] = [[] for _ in prompts]
    done = 0
    report(ProgressText("recording", done, len(prompts), "answers"))
    while watched.has_work:
        for output in watched.step():
            tokens[int(output.request_id)] += output.token_ids
            done += output.finish_reason is not None
        report(ProgressText("recording", done, len(prompts), "answers"))
    band = SAMPLED if params.temperature > 0 else GREEDY
    return [
        RecordedAnswer(
            tuple(answer),
            tuple(recording.guesses[str(i), position + 1] for position in range(len(answer) - 1)),
            band,
            category,
        )
        for i, (answer, (_, category)) in enumerate(zip(tokens, prompts, strict=True))
    ]
