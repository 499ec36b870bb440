"""Engine: the continuous batching loop of one model; `step` runs one iteration.

Owns the order of the five parts of a step. Not here: the parts themselves (scheduler/, runner/, spec/).
All methods are called from one thread, except `prepare`.
"""

import time
from collections.abc import Mapping

from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.phase_timer import PhaseTimer
from medusa_dist.engine.runner.plan import Op, Plan
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.draft_policy import DraftPolicy
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.engine.state.matcher import GrammarCompiler, Matcher
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.record import StepRecorder, StepSamples
from medusa_dist.engine.steps.samples import StepSample
from medusa_dist.outputs import Output, SpeculationStats
from medusa_dist.request import Request


class Engine:
    """Rank 0's engine.

    drafters: by name, in the order in which they draft; none: no speculation. grammars: None refuses requests with a
    grammar.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ranks: RankGroup,
        token_selector: TokenSelector,
        drafters: Mapping[str, Drafter],
        policy: DraftPolicy,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.ranks = ranks
        self.token_selector = token_selector
        self.drafters = dict(drafters)
        self.policy = policy
        self.grammars = grammars
        self.clock = PhaseTimer()
        self.recorder = StepRecorder()
        self._samples = StepSamples()
        self._begin = 0.0  # start of this step
        self._num_steps = 0
        self._totals = SpeculationStats()
        self._num_tokens = 0
        self._num_prompt_tokens = 0

    def step(self) -> list[Output]:
        """schedule -> verify -> accept -> emit -> draft. Call only if has_work."""
        plan = self._schedule()
        scores = self._verify(plan)
        results = self._accept(plan, scores)
        outputs = self._emit(plan, results, scores)
        self._draft(results, scores)
        return outputs

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def prepare(self, request: Request) -> None:
        """Do the slow part of accepting a request. Callable from any thread; it decides nothing and raises nothing."""
        if request.params.grammar is not None and self.grammars is not None:
            self.grammars.prepare(request.params.grammar)

    def submit(self, request: Request, output_ids: tuple[int, ...] = ()) -> None:
        """Queue a request; output_ids are tokens it emitted before a restart. Raises RequestError."""
        self.scheduler.submit(request, output_ids, self._matcher(request, output_ids))
        self._num_prompt_tokens += len(request.prompt_ids)

    def _matcher(self, request: Request, output_ids: tuple[int, ...]) -> Matcher | None:
        grammar = request.params.grammar
        if grammar is None:
            return None
        if self.grammars is None:
            raise grammar.error("this engine has no tokenizer (skip_tokenizer_init)")
        return self.grammars.start(grammar, output_ids, request.params.ignore_eos, request.params.allowed_token_ids)

    def abort(self, request_id: str) -> None:
        """Drop a request. Idempotent; no further output follows."""
        self.scheduler.abort(request_id)

    def reset_prefix_cache(self) -> None:
        """Drop the cached KV blocks that no running sequence holds, so that no later prompt hits them."""
        self.scheduler.pool.reset_prefix_cache()

    def heartbeat(self) -> None:
        """Tell idle followers that rank 0 is alive; also checks the scheduler's integrity."""
        self.scheduler.check_integrity()
        self.ranks.announce(Op.HEARTBEAT)

    def stop(self) -> None:
        """Tell the followers to return."""
        self.ranks.announce(Op.STOP)

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_used_fraction=self.scheduler.kv_used_fraction,
            num_steps=self._num_steps,
            num_tokens=self._num_tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            num_drafted=self._totals.num_drafted,
            num_expected=self.policy.counts.num_expected,
            accepted_per_head=self._totals.accepted_per_head,
            drafted_by=self._totals.drafted_by,
            accepted_by=self._totals.accepted_by,
            num_sequence_steps=self._totals.num_steps,
            num_steps_without_drafts=self.policy.counts.num_steps_without_drafts,
            num_paused_sequence_steps=self.policy.counts.num_paused_sequence_steps,
            num_paused_sequences=sum(map(self.policy.is_paused, self.scheduler.running)),
            num_preemptions=self.scheduler.num_preemptions,
            phase_seconds=dict(self.clock.seconds),
        )

    def take_samples(self) -> list[StepSample]:
        """Samples of the steps since the last call. The first call begins the collection."""
        if self._samples not in self.recorder.observers:
            self.recorder.observers.append(self._samples)
        return self._samples.take()

    def _schedule(self) -> Plan:
        self.recorder.begin(self.clock.seconds)
        self.clock.start()
        self._begin = time.perf_counter()
        plan = self.scheduler.schedule(self.ranks.next_step())
        self.clock.lap("schedule")
        return plan

    def _verify(self, plan: Plan) -> Scores:
        return self.ranks.verify(plan, self.clock)

    def _accept(self, plan: Plan, scores: Scores) -> list[StepResult]:
        results = self.token_selector.select(plan, scores, self.scheduler.sequences_with_logits(plan))
        self.recorder.verified(plan, results)
        self.policy.learn(results)
        self.clock.lap("accept")
        return results

    def _emit(self, plan: Plan, results: list[StepResult], scores: Scores) -> list[Output]:
        outputs = self.scheduler.emit(plan, results, scores.prompt_logprobs)
        self._num_steps += 1
        for output in outputs:
            self._totals += output.stats
            self._num_tokens += len(output.token_ids)
        self.clock.lap("emit")
        if (plan.num_new_tokens == 1).all():
            self.policy.observe(
                plan.batch_indices.size, int(plan.num_draft_tokens.sum()), time.perf_counter() - self._begin
            )
        return outputs

    def _draft(self, results: list[StepResult], scores: Scores) -> None:
        for name, drafter in self.drafters.items():
            if selected := self.policy.select_for_drafting(name, results):
                begin = time.perf_counter()
                for result, candidates in zip(selected, drafter.draft(selected, scores), strict=True):
                    if candidates is not None:
                        result.sequence.candidates[name] = candidates
                self.policy.observe_drafting(name, len(results), time.perf_counter() - begin)
            self.recorder.drafted(name, len(selected))
        self.clock.lap("draft")
        self.recorder.end(self.clock.seconds, self.scheduler)
