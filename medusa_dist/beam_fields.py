"""Which fields of a request go with a beam search, and in which range.

Owns these rules; docs/beam_search.md gives the reasons. Not here: the search (medusa/beam/search.py). Imports nothing
of ours but errors; request.py asks it.
"""

from typing import Any

from medusa_dist.errors import RequestError

MAX_BEAM_WIDTH = 64
MAX_LENGTH_PENALTY = 10.0

GRAMMAR_REASON = "a grammar is followed along one sequence, which must not fork"
_SAMPLES = "a beam search takes the likeliest, it does not sample"
_TOKENS_ONLY = "a beam search ranks tokens and does not look at text; use stop_token_ids"
# Field, the values that ask for nothing, and why no other goes with beams. A field that is not there asks for nothing.
_NEUTRAL: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("temperature", (0.0, 1.0), _SAMPLES),
    ("top_p", (1.0,), _SAMPLES),
    ("top_k", (0,), _SAMPLES),
    ("min_p", (0.0,), _SAMPLES),
    ("presence_penalty", (0.0,), "its beam search has no counterpart in transformers; use repetition_penalty"),
    ("frequency_penalty", (0.0,), "its beam search has no counterpart in transformers; use repetition_penalty"),
    ("stop", ((),), _TOKENS_ONLY),
    ("grammar", (None,), GRAMMAR_REASON),
    ("acceptance", ("exact",), "the result would depend on what was drafted"),
    ("acceptance", ("exact",), "beams are ranked by the model's own scores"),
    ("logprobs", (None,), "hypotheses carry one score each"),
    ("prompt_logprobs", (None,), "hypotheses carry one score each"),
    ("grammar", (None,), "its hypotheses are not matched against grammars"),
)


def check_beam_fields(params: Any) -> None:
    """params: a SamplingParams. Raises RequestError naming the field that is out of range, or out of place."""
    if params.early_stopping not in (True, False, "never"):
        raise RequestError(
            f'early_stopping must be true, false or "never", got {params.early_stopping!r}', "early_stopping"
        )
    if not -MAX_LENGTH_PENALTY <= params.length_penalty <= MAX_LENGTH_PENALTY:
        limit = f"{MAX_LENGTH_PENALTY:g}"
        raise RequestError(
            f"length_penalty must be between -{limit} and {limit}, got {params.length_penalty!r}", "length_penalty"
        )
    if params.beam_width is None:
        for name, neutral in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(params, name) != neutral:
                raise RequestError(f"{name} is a field of beam search; give beam_width too", name)
        return
    if isinstance(params.beam_width, bool) or not 1 <= params.beam_width <= MAX_BEAM_WIDTH:
        raise RequestError(
            f"beam_width must be between 1 and {MAX_BEAM_WIDTH}, got {params.beam_width!r}", "beam_width"
        )
    if params.max_tokens == 0:
        raise RequestError("max_tokens must be at least 1 with beam_width", "max_tokens")
    for name, neutral_values, reason in _NEUTRAL:
        value = getattr(params, name, neutral_values[0])
        if value not in neutral_values:
            raise RequestError(f"{name} cannot be used with beam_width: {reason}; leave it out", name)
