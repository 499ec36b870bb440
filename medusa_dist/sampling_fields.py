"""Table of sampling fields: default, range, need for full logits, use with beam search.

Owns the table, which SamplingParams, the HTTP request models and docs/requests.md read. Not here: the meaning of fields
(sampling_params.py), applying them (ops/sampling.py), beam search itself (medusa/beam/search.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from medusa_dist.errors import RequestError

MAX_LOGPROBS = 20
MAX_BEAM_WIDTH = 64
MAX_OUTPUTS = 1024  # of one prompt
WHOLE = {"n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs", "beam_width"}
OPTIONAL = {"max_tokens", "seed", "logprobs", "prompt_logprobs", "beam_width"}  # numbers that may be None
MAX_BAD_WORDS = 1000  # each is compared with the end of the output, for each token
GRAMMAR_WITH_BEAMS = "a grammar follows one sequence, and beams fork"

_FILTERS = ("top_p", "top_k", "min_p")  # keep the best token, which is the one that temperature 0 takes
_SAMPLES = "beam search takes the most likely continuations and does not sample"
_NO_COUNTERPART = "transformers' beam search has no equivalent; use repetition_penalty"
_NO_BANS = "bans as transformers' beam search applies them look at the prompt, too; use logit_bias"
_ONE_SCORE = "each hypothesis has one score"


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One field of SamplingParams.

    low, high: inclusive range of a number; None: not a number, or not bounded here. full_logits: a value other than the
    default needs full logits on rank 0, so a vocabulary shard's own argmax is not enough. no_beams: why a value other
    than the default cannot be used with beam_width; None: it can. beam_neutral: further values without effect in a
    beam search. also: a further value outside the range, with a meaning of its own.
    """

    default: Any
    low: float | None = None
    high: float | None = None
    full_logits: bool = False
    no_beams: str | None = None
    beam_neutral: tuple[Any, ...] = ()
    also: int | None = None


FIELDS: Mapping[str, SamplingField] = {
    "n": SamplingField(1, 1, MAX_OUTPUTS),
    "max_tokens": SamplingField(16, 0, 2**31),
    "min_tokens": SamplingField(0, 0, 2**31, full_logits=True),
    "temperature": SamplingField(1.0, 0.0, 100.0, no_beams=_SAMPLES, beam_neutral=(0.0,)),
    "top_p": SamplingField(1.0, 0.0, 1.0, full_logits=True, no_beams=_SAMPLES),
    "top_k": SamplingField(0, 0, 2**31, full_logits=True, no_beams=_SAMPLES, also=-1),
    "min_p": SamplingField(0.0, 0.0, 1.0, full_logits=True, no_beams=_SAMPLES),
    "presence_penalty": SamplingField(0.0, -2.0, 2.0, full_logits=True, no_beams=_NO_COUNTERPART),
    "frequency_penalty": SamplingField(0.0, -2.0, 2.0, full_logits=True, no_beams=_NO_COUNTERPART),
    "repetition_penalty": SamplingField(1.0, 1e-3, 100.0, full_logits=True),
    "logit_bias": SamplingField((), full_logits=True),
    "allowed_token_ids": SamplingField(None, full_logits=True, no_beams="a search needs more candidates than beams"),
    "bad_words": SamplingField((), full_logits=True, no_beams=_NO_BANS),
    "seed": SamplingField(None, -(2**63), 2**63 - 1),
    "stop": SamplingField((), no_beams="beam search compares tokens and does not decode text; use stop_token_ids"),
    "stop_token_ids": SamplingField(()),
    "include_stop_str_in_output": SamplingField(False),
    "ignore_eos": SamplingField(False),
    "skip_special_tokens": SamplingField(True),
    "spaces_between_special_tokens": SamplingField(True),
    "logprobs": SamplingField(None, 0, MAX_LOGPROBS, full_logits=True, no_beams=_ONE_SCORE),
    "prompt_logprobs": SamplingField(None, 0, MAX_LOGPROBS, no_beams=_ONE_SCORE),
    "detokenize": SamplingField(True),
    "speculation": SamplingField(True),
    "acceptance": SamplingField(
        "exact", full_logits=True, no_beams="the result would depend on the draft tokens, not only on the model"
    ),
    "typical_epsilon": SamplingField(0.09, 1e-9, 1.0),
    "typical_delta": SamplingField(0.3, 1e-9, 10.0),
    "beam_width": SamplingField(None, 1, MAX_BEAM_WIDTH, full_logits=True),
    "length_penalty": SamplingField(1.0, -10.0, 10.0),
    "early_stopping": SamplingField(False),
    "grammar": SamplingField(None, full_logits=True, no_beams=GRAMMAR_WITH_BEAMS),
}


def default(name: str) -> Any:
    """The default of a field."""
    return FIELDS[name].default


def whole_number(name: str, value: Any) -> int:
    """The value as an int. Raises RequestError naming the field for anything else, also for true and 1.5."""
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole:
        raise RequestError(f"{name} must be a whole number, got {value!r}", name)
    return int(value)


def check_ranges(params: Any) -> None:
    """params: a SamplingParams; whole numbers become int. Raises RequestError naming the first field that is no number,
    or out of range."""
    for name, field in FIELDS.items():
        value = getattr(params, name)
        if field.low is None or field.high is None or (value is None and name in OPTIONAL):
            continue
        if name in WHOLE:
            value = whole_number(name, value)
            object.__setattr__(params, name, value)
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise RequestError(f"{name} must be a number, got {value!r}", name)
        if not field.low <= value <= field.high and value != field.also:
            raise RequestError(f"{name} must be between {field.low:g} and {field.high:g}, got {value!r}", name)


def needs_full_logits(params: Any) -> bool:
    """params: a SamplingParams. Whether any field's value needs full logits on rank 0."""
    idle = _FILTERS if params.temperature == 0.0 else ()
    return any(
        field.full_logits and getattr(params, name) != field.default
        for name, field in FIELDS.items()
        if name not in idle
    )


def check_beam_fields(params: Any) -> None:
    """params: a SamplingParams. Raises RequestError naming the first field that its beam_width, or lack of one,
    does not allow."""
    if params.early_stopping not in (True, False, "never"):
        raise RequestError(
            f'early_stopping must be true, false or "never", got {params.early_stopping!r}', "early_stopping"
        )
    if params.beam_width is None:
        for name in ("length_penalty", "early_stopping"):
            if getattr(params, name) != default(name):
                raise RequestError(f"{name} requires beam search; set beam_width or remove {name}", name)
        return
    if params.n > params.beam_width:
        raise RequestError(
            f"n ({params.n}) exceeds beam_width ({params.beam_width}); a search returns at most one output per beam",
            "n",
        )
    if params.max_tokens == 0:
        raise RequestError("max_tokens must be at least 1 with beam_width", "max_tokens")
    for name, field in FIELDS.items():
        value = getattr(params, name)
        if field.no_beams is not None and value != field.default and value not in field.beam_neutral:
            raise RequestError(f"{name} cannot be used with beam_width: {field.no_beams}; remove it", name)
