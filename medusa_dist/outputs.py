"""What leaves the engine: outputs, finish reasons, log-probabilities and counts of speculation.

Owns these nouns. Not here: what goes in (request.py), text made of tokens (text/). No torch.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest

from medusa_dist.errors import RequestError


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # end-of-sequence token, stop token, stop string, or the grammar is complete
    LENGTH = "length"  # max_tokens or the model's context is used up
    ABORT = "abort"  # the client went away, the request was cancelled, or the engine cannot go on with it (see error)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural log) at one output position: of the chosen token, and of the most likely ones."""

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
    """Counts of a request, or of a step: verified drafts and where they were accepted.

    num_steps: steps that chose at least one token. accepted_per_head[k]: tokens that head k + 1 guessed right.
    drafted_per_head[k]: its guesses among the num_drafted.
    """

    num_steps: int = 0
    num_drafted: int = 0
    accepted_per_head: tuple[int, ...] = ()
    drafted_per_head: tuple[int, ...] = ()

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that became output."""
        return sum(self.accepted_per_head)

    @property
    def tokens_per_step(self) -> float:
        """Output tokens per step: 1 + accepted tokens per step; 0 before the first step."""
        return 1.0 + self.num_accepted / self.num_steps if self.num_steps else 0.0

    def __add__(self, other: "SpeculationStats") -> "SpeculationStats":
        def added(mine: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(a + b for a, b in zip_longest(mine, theirs, fillvalue=0))

        return SpeculationStats(
            self.num_steps + other.num_steps,
            self.num_drafted + other.num_drafted,
            added(self.accepted_per_head, other.accepted_per_head),
            added(self.drafted_per_head, other.drafted_per_head),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one step (or several, merged) adds to a request.

    heads[i] says who guessed token_ids[i]: 0 = the base model itself, k = drafted by head k and verified.
    logprobs has one entry per token if the request asked for it, else is empty. finish_reason is None until the end.
    hypotheses: of a beam search, best first, with its only output; token_ids are those of the best.
    num_cached_tokens: prompt tokens that the prefix cache had.
    prompt_logprobs: in the first output of a request that asked for it, an entry per prompt token; None for the first
    token, which nothing precedes.
    is_complete: the grammar left nothing to add, so that a last token of finish_reason STOP is text; otherwise it is an
    end or stop token. error: why the engine could not go on with this one request, after finish_reason ABORT.
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

    def merged(self, later: "Output") -> "Output":
        """This output followed by a later one of the same request."""
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
        )
