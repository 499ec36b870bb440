"""SamplingParams of a request body.

Owns the meaning of sampling fields over HTTP. Not here: types and ranges (requests.py), prompts and Requests
(api/convert.py), the fields themselves (sampling_params.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medusa_dist.api.beams import asked_beams
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest, Sampled
from medusa_dist.api.schema.structured_outputs import asked_grammar
from medusa_dist.errors import RequestError
from medusa_dist.sampling_fields import FIELDS, GRAMMAR_WITH_BEAMS
from medusa_dist.sampling_params import SamplingParams


def sampling_params(
    body: ChatRequest | CompletionRequest, vocab_size: int, defaults: Mapping[str, Any]
) -> SamplingParams:
    """The body's sampling fields; null means the default. Raises RequestError naming the field the client used.

    defaults: the model's own values of fields that the client leaves out. Its max_tokens is not applied here, because
    it depends on the prompt.
    """
    given: dict[str, Any] = {name: getattr(body, name) for name in _PLAIN if getattr(body, name) is not None}
    beam_width = asked_beams(body)
    for name, value in defaults.items():
        if name != "max_tokens" and (beam_width is None or FIELDS[name].no_beams is None):
            given.setdefault(name, value)
    if isinstance(body, ChatRequest):
        given["max_tokens"] = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        given["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    else:
        given["logprobs"] = body.logprobs
        if body.echo and body.logprobs is not None:
            given["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if given.get("seed") == -1:
        given["seed"] = None
    stop = body.stop or ()
    grammar = asked_grammar(body)
    if grammar is not None and beam_width is not None:
        field = grammar.param
        raise RequestError(f"{field} cannot be used with beam_width: {GRAMMAR_WITH_BEAMS}; remove one of them", field)
    return SamplingParams(
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=_token_ids(body.stop_token_ids, vocab_size, "stop_token_ids") or (),
        logit_bias=_logit_bias(body, vocab_size),
        allowed_token_ids=_token_ids(body.allowed_token_ids, vocab_size, "allowed_token_ids"),
        bad_words=tuple(body.bad_words or ()),
        speculation=body.speculation != "off",
        beam_width=beam_width,
        grammar=grammar,
        **given,
    )


_PLAIN = (
    *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "seed", "ignore_eos", "prompt_logprobs"),
    *("include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"),
    *("acceptance", "typical_epsilon", "typical_delta", "length_penalty", "early_stopping"),
)


def _logit_bias(body: Sampled, vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, bias in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 20):
            raise RequestError(f"logit_bias: {key[:40]!r} is not a token id", "logit_bias")
        pairs.append((_token_id(int(key), vocab_size, "logit_bias"), bias))
    if len({i for i, _ in pairs}) < len(pairs):
        raise RequestError("logit_bias contains the same token id twice", "logit_bias")
    return tuple(pairs)


def check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Raise RequestError, naming the field, for a token id that the vocabulary does not have."""
    for token_id in token_ids:
        _token_id(token_id, vocab_size, field)


def _token_ids(given: list[int] | None, vocab_size: int, field: str) -> tuple[int, ...] | None:
    return None if given is None else tuple(_token_id(i, vocab_size, field) for i in given)


def _token_id(token_id: int, vocab_size: int, field: str) -> int:
    if not 0 <= token_id < vocab_size:
        raise RequestError(f"{field}: token id {token_id} is outside the vocabulary of {vocab_size} tokens", field)
    return token_id


def with_own_limit(
    body: ChatRequest | CompletionRequest, params: SamplingParams, defaults: Mapping[str, Any], room: int
) -> SamplingParams:
    """The params with the model's own max_tokens, where a chat sets none and the context has room for more tokens.

    Completions have OpenAI's default instead, 16.
    """
    limit = defaults.get("max_tokens")
    if limit is None or params.max_tokens is not None or not isinstance(body, ChatRequest):
        return params
    limit = max(limit, params.min_tokens)
    return params if limit >= room else replace(params, max_tokens=limit)
