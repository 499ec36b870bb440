"""What is asked and what leaves: Request, SamplingParams, Output.

Owns the nouns at both ends of the engine. Not here: text (text/text_stream.py), the life of a request in the engine
(engine/state/sequence.py), which fields go with a beam search (beam_fields.py). No torch.
"""

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest
from typing import Literal

from medusa_dist.beam_fields import check_beam_fields
from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar

MAX_LOGPROBS = 20
MAX_PRIORITY = 2**31


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # end-of-sequence token, stop token, stop string, or the grammar is complete
    LENGTH = "length"  # max_tokens or the model's context is used up
    ABORT = "abort"  # the client went away, the request was cancelled, or the engine cannot go on with it (see error)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Names and meanings follow vLLM's class of the same name.

    temperature: 0 is greedy. top_p, top_k (0 = all) and min_p cut the distribution after temperature and penalties.
    max_tokens: None = as many as the context holds, 0 = none, the prompt alone is computed (and scored). seed: None =
    drawn, and reported in the output.
    stop: strings that end the text and are not part of it. stop_token_ids: ids that end it, likewise.
    logprobs: None = none, k = the chosen token's log-probability and those of the k most likely tokens, under the
    base model's own distribution before temperature, penalties and filters.
    prompt_logprobs: None = none, k = the same for the tokens of the prompt, in the first output.
    speculation: False decodes this request without drafted tokens; the output is the same by construction.
    acceptance: "exact", or "typical": lossy, drafted tokens survive that are likely enough by typical_epsilon and
    typical_delta (medusa/trees/accept.py); the output then depends on what was drafted.
    beam_width: None = no beam search; W = the W best hypotheses, as transformers finds them with num_beams W, and with
    its length_penalty and early_stopping (docs/beam_search.md).
    grammar: what the whole output must look like; it ends where the grammar leaves nothing to add, whatever min_tokens
    and ignore_eos say. stop, stop_token_ids and max_tokens may end it before.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    speculation: bool = True
    acceptance: Literal["exact", "typical"] = "exact"
    typical_epsilon: float = 0.09
    typical_delta: float = 0.3
    beam_width: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        bias = self.logit_bias
        pairs = bias.items() if isinstance(bias, dict) else bias or ()
        object.__setattr__(self, "logit_bias", tuple(sorted((int(i), float(b)) for i, b in pairs)))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} must be between {low:g} and {high:g}, got {value!r}", name)
        if any(not text for text in self.stop):
            raise RequestError("stop must not contain an empty string", "stop")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens")
        self._check_acceptance()
        check_beam_fields(self)
        if self.beam_width is not None:  # it may have been left out, and means nothing here
            object.__setattr__(self, "temperature", 0.0)

    def _check_acceptance(self) -> None:
        if self.acceptance not in ("exact", "typical"):
            raise RequestError(f'acceptance must be "exact" or "typical", got {self.acceptance!r}', "acceptance")
        if self.acceptance == "exact":
            for name, default in (("typical_epsilon", 0.09), ("typical_delta", 0.3)):
                if getattr(self, name) != default:
                    raise RequestError(f'{name} is a bound of acceptance "typical"; ask for that, too', name)
        elif self.temperature == 0.0:
            raise RequestError("at temperature 0 typical acceptance is the exact one; leave it out", "acceptance")
        elif not self.speculation:
            raise RequestError("without speculation nothing is drafted that could be accepted", "acceptance")

    @property
    def needs_whole_row(self) -> bool:
        """True if the choice needs more than each vocabulary shard's own argmax of logits / T + noise."""
        return (
            self.logprobs is not None
            or self.acceptance == "typical"
            or self.beam_width is not None
            or self.top_p < 1.0
            or self.top_k > 0
            or self.min_p > 0.0
            or self.min_tokens > 0
            or bool(self.logit_bias)
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
            or self.grammar is not None
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, 2**31),
    ("min_tokens", 0, 2**31),
    ("temperature", 0.0, 100.0),
    ("top_p", 1e-9, 1.0),
    ("top_k", 0, 2**31),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 1e-3, 100.0),
    ("seed", -(2**63), 2**63 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
    ("typical_epsilon", 1e-9, 1.0),
    ("typical_delta", 1e-9, 10.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to continue. `seed` is always set: whoever makes the Request draws it if the user gave none.

    priority: lower numbers are served first and preempted last; equal ones first come, first served.
    cache_salt: prompts share prefixes in the cache only with prompts of the same salt (one per tenant, say).
    Both are named as in vLLM, and neither changes the output.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {self.priority!r}", "priority"
            )
        if self.cache_salt == "":
            raise RequestError("cache_salt must not be empty; leave it out to share prefixes with all", "cache_salt")


def choice_seed(seed: int, *path: int | str) -> int:
    """A 64-bit seed for choice i of n, or for a batch line: hash of the parent's seed and what names the child.

    Choice 0 keeps the parent's seed, so n = 1 and the first of n > 1 agree.
    """
    if path == (0,):
        return seed
    digest = hashlib.blake2b("/".join(map(str, (seed, *path))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


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


def check_prompt(prompt_ids: Seq[int], max_model_len: int, vocab_size: int, max_tokens: int | None) -> None:
    """Refuse a prompt the model cannot take.

    Raises RequestError (param "prompt" or "max_tokens") for an empty prompt, an id outside the vocabulary, or a prompt
    that, together with max_tokens, exceeds the context.
    """
    if not prompt_ids:
        raise RequestError("the prompt is empty; give at least one token", "prompt")
    bad = next((t for t in prompt_ids if not 0 <= t < vocab_size), None)
    if bad is not None:
        raise RequestError(f"token id {bad} is outside the vocabulary of {vocab_size} tokens", "prompt")
    wanted = 1 if max_tokens is None else max_tokens
    if len(prompt_ids) + wanted > max_model_len:
        raise RequestError(
            f"this model's context is {max_model_len} tokens; the prompt has {len(prompt_ids)} and max_tokens asks for "
            f"{wanted} more; shorten the prompt or lower max_tokens",
            "prompt" if len(prompt_ids) >= max_model_len else "max_tokens",
            "context_length_exceeded",
        )
