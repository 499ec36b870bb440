"""Output and its parts: finish reasons, log-probabilities, speculation counts, step records.

Owns what leaves the engine. Not here: requests (request.py), text (text/). No torch.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest

from medusa_dist.errors import RequestError


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # end-of-sequence token, stop token, stop string, or complete grammar
    LENGTH = "length"  # max_tokens or the model's context length is reached
    ABORT = "abort"  # the client disconnected, the request was cancelled, or the engine could not continue (see error)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural log) at one position: of the actual token, and of the most likely ones."""

    token_id: int
    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One finished beam. score: sum of its tokens' log-probabilities / length ** length_penalty."""

    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """Speculation counts of a request or a step: draft tokens verified and accepted.

    num_steps: steps that chose at least one token. accepted_per_head[k]: accepted tokens at depth k + 1, which is
    where head k + 1 guesses. drafted_per_head[k]: draft tokens at this depth among the num_drafted.
    drafted_by, accepted_by: the same tokens by drafter ("heads", "lookup"); a token that both guessed counts for both,
    one that a grammar forced for none.
    """

    num_steps: int = 0
    num_drafted: int = 0
    accepted_per_head: tuple[int, ...] = ()
    drafted_per_head: tuple[int, ...] = ()
    drafted_by: Mapping[str, int] = field(default_factory=Counter)
    accepted_by: Mapping[str, int] = field(default_factory=Counter)

    @property
    def num_accepted(self) -> int:
        """Accepted draft tokens."""
        return sum(self.accepted_per_head)

    @property
    def tokens_per_step(self) -> float:
        """Output tokens per step: 1 + accepted tokens per step; 0 before the first step."""
        return 1.0 + self.num_accepted / self.num_steps if self.num_steps else 0.0

    def __add__(self, other: "SpeculationStats") -> "SpeculationStats":
        return SpeculationStats(
            self.num_steps + other.num_steps,
            self.num_drafted + other.num_drafted,
            _sums(self.accepted_per_head, other.accepted_per_head),
            _sums(self.drafted_per_head, other.drafted_per_head),
            _sum_by_name(self.drafted_by, other.drafted_by),
            _sum_by_name(self.accepted_by, other.accepted_by),
        )


def _sums(mine: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(mine, theirs, fillvalue=0)) if theirs else mine


def _sum_by_name(mine: Mapping[str, int], theirs: Mapping[str, int]) -> Mapping[str, int]:
    """Neither is changed later, so one that stays as it is need not be copied."""
    if not theirs:
        return mine
    total = Counter(mine)
    for name, count in theirs.items():
        total[name] += count
    return total


class TreeReason(StrEnum):
    """Why a step verified as many drafts as it did."""

    OFF = "off"  # the request has speculation off, or the service has no drafter
    PROMPT = "prompt"  # the step computed the prompt (again, after a preemption), so there was nothing to draft from
    LAST_TOKEN = "last_token"  # the output may have only one more token
    NO_GAIN = "no_gain"  # the heads did not run: for a batch of this size they were predicted not to pay
    PAUSED = "paused"  # the heads did not run: recent drafts of this sequence were rarely accepted
    NO_GUESS = "no_guess"  # no drafter had a guess
    BUDGET = "budget"  # one more draft would have cost more time than it was expected to save
    MAX_NODES = "max_nodes"  # the limit speculation.max_nodes
    ROOM = "room"  # no tokens or KV blocks were left in the step, or a chunk of keys ended
    ALL = "all"  # every guess was verified
    STATIC = "static"  # a static tree is always verified


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did for a request that asks for it: its draft tree, and what came of it.

    tokens, parents, chances, drafters: of each recorded draft. parents[i]: the draft before it, -1 for the last known
    token. chances[i]: the calibrated confidence that it is accepted, given that its parent is; () if there was none.
    drafters[i]: who guessed it, () if a grammar forced it.
    accepted: the accepted drafts, first to last. num_tokens: output tokens of the step, the accepted ones first; then
    comes the model's own, unless the output ended before it.
    num_drafts: verified drafts; more than len(tokens) if the tree is too large to record. num_offered: drafts before
    the budget was applied. num_sequences: how many sequences the step decoded. speed_up: predicted for the batch, over
    steps without drafts; None without a measured cost.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    chances: tuple[float, ...]
    drafters: tuple[tuple[str, ...], ...]
    accepted: tuple[int, ...]
    num_tokens: int
    num_drafts: int
    num_offered: int
    num_sequences: int
    speed_up: float | None
    reason: TreeReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one step (or several, merged) adds to a request.

    heads[i]: which head guessed token_ids[i]: 0 = the base model, k = drafted by head k and accepted.
    logprobs: one entry per token if requested, else empty. finish_reason: None until the end.
    hypotheses: of a beam search, best first, in its only output; token_ids are those of the best.
    num_cached_tokens: prompt tokens found in the prefix cache.
    prompt_logprobs: if requested, in the first output of a request: one entry per prompt token; None for the first
    token, which has no context.
    is_complete: the grammar allows no further token, so the last token with finish_reason STOP is text; otherwise it is
    an end-of-sequence or stop token. error: why the engine could not continue this request, with finish_reason ABORT.
    steps: what each step did, in order, if the request asks for it; engine/state/step_notes.py has the bounds.
    prefill_s: seconds from the request's first step to its first token, in the output that has it; None for a search.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    is_complete: bool = False
    error: RequestError | None = None
    steps: tuple[StepRecord, ...] = ()
    prefill_s: float | None = field(default=None, compare=False)

    def merged(self, later: "Output") -> "Output":
        """This output merged with a later one of the same request."""
        assert self.request_id == later.request_id and self.finish_reason is None
        return Output(
            request_id=self.request_id,
            token_ids=self.token_ids + later.token_ids,
            heads=self.heads + later.heads,
            logprobs=self.logprobs + later.logprobs,
            finish_reason=later.finish_reason,
            stats=self.stats + later.stats,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=self.prompt_logprobs or later.prompt_logprobs,
            hypotheses=later.hypotheses,
            is_complete=later.is_complete,
            error=later.error,
            steps=self.steps + later.steps,
            prefill_s=later.prefill_s if self.prefill_s is None else self.prefill_s,
        )
