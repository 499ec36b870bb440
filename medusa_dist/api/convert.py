"""Converts request bodies to Requests, and exceptions to HTTP errors.

Owns the meaning of request fields and the one mapping from exceptions to responses. Not here: types and ranges
(schema/requests.py), response bodies (response_builder.py).
"""

import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from medusa_dist.api.beams import asked_beams
from medusa_dist.api.schema.messages import ChatMessage
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest, Sampled
from medusa_dist.api.schema.structured_outputs import asked_grammar
from medusa_dist.api.service import Service
from medusa_dist.errors import EngineError, GroupError, NotFoundError, RequestError
from medusa_dist.request import Request, check_prompt, choice_seed
from medusa_dist.sampling_fields import GRAMMAR_WITH_BEAMS
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.bounded_render import run_bounded
from medusa_dist.text.chat_template import encode_chat
from medusa_dist.text.control_tokens import literal_encoder
from medusa_dist.text.no_tokenizer import NoTokenizer

logger = logging.getLogger(__name__)
T = TypeVar("T")

LONG_TEXT = 4_000  # characters; for shorter texts a thread costs more than tokenising in place
MAX_CHOICES = 1024  # prompts x n of one call
_UNION_LABELS = {"str", "int", "float", "bool"}


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt. text: as the client sent it, for echo (decoded if it sent token ids)."""

    text: str
    ids: tuple[int, ...]


async def off_loop(text_length: int, work: Callable[[], T]) -> T:
    """Run CPU work on texts: directly if they are short, in a thread if they would block other streams."""
    return work() if text_length < LONG_TEXT else await anyio.to_thread.run_sync(work)


def check_model(name: str, service: Service) -> None:
    """Raise NotFoundError unless the service serves this model."""
    if name != service.name:
        raise NotFoundError(
            f"model {name!r} does not exist here; this service serves {service.name!r}", "model", "model_not_found"
        )


async def chat_prompt(
    messages: Sequence[ChatMessage], add_generation_prompt: bool, service: Service, add_special_tokens: bool = False
) -> EncodedPrompt:
    """Messages through the model's chat template. Raises RequestError where there is none or it objects."""
    turns = [m.turn() for m in messages]

    def render() -> EncodedPrompt:
        text, ids = encode_chat(
            service.tokenizer,
            turns,
            add_generation_prompt=add_generation_prompt,
            instead="/v1/completions",
            sanitize=service.sanitize_control_tokens,
            add_special_tokens=add_special_tokens,
        )
        return EncodedPrompt(text, tuple(ids))

    return await anyio.to_thread.run_sync(run_bounded, render)


async def text_prompt(
    text: str, service: Service, add_special_tokens: bool = True, parse_special: bool = True
) -> EncodedPrompt:
    """Tokenise a plain text.

    add_special_tokens: with those the model expects around it. parse_special: the text may contain control tokens.
    """

    def tokenize() -> EncodedPrompt:
        if parse_special or isinstance(service.tokenizer, NoTokenizer):  # which refuses
            ids = service.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        else:
            encoder = literal_encoder(service.tokenizer)
            ids = encoder.encode_plain(text)
            ids = encoder.add_affixes(ids) if add_special_tokens else ids
        return EncodedPrompt(text, tuple(ids))

    return await off_loop(len(text), tokenize)


async def completion_prompts(body: CompletionRequest, service: Service) -> list[EncodedPrompt]:
    """All prompts of a completions call: one text, one list of token ids, or a list of either."""
    given = body.prompt
    listed: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not listed:
        raise RequestError("prompt is empty; give at least one text or list of token ids", "prompt")
    prompts = []
    for item in listed:
        if isinstance(item, str):
            options = (body.add_special_tokens is not False, body.parse_special is not False)
            prompts.append(await text_prompt(item, service, *options))
        else:
            # Before the tokenizer sees the ids.
            check_prompt(item, service.max_model_len, service.vocab_size, body.max_tokens)
            prompts.append(EncodedPrompt(_decoded(item, service.tokenizer), tuple(item)))
    return prompts


def _decoded(ids: list[int], tokenizer: Any) -> str:
    """The text of a prompt that came as token ids, for echo; empty where there is no tokenizer."""
    return "" if isinstance(tokenizer, NoTokenizer) else str(tokenizer.decode(ids))


def sampling_params(body: ChatRequest | CompletionRequest, vocab_size: int) -> SamplingParams:
    """The body's sampling fields; null means the default. Raises RequestError naming the field the client used."""
    given: dict[str, Any] = {name: getattr(body, name) for name in _PLAIN if getattr(body, name) is not None}
    if isinstance(body, ChatRequest):
        given["max_tokens"] = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        given["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    else:
        given["logprobs"] = body.logprobs
        if body.echo and body.logprobs is not None:
            given["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    if given.get("top_k") == -1:
        given["top_k"] = 0
    stop = body.stop or ()
    grammar = asked_grammar(body.response_format if isinstance(body, ChatRequest) else None, body.structured_outputs)
    beam_width = asked_beams(body)
    if grammar is not None and beam_width is not None:
        field = "response_format" if body.structured_outputs is None else "structured_outputs"
        raise RequestError(f"{field} cannot be used with beam_width: {GRAMMAR_WITH_BEAMS}; remove one of them", field)
    return SamplingParams(
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(_token_id(i, vocab_size, "stop_token_ids") for i in body.stop_token_ids or ()),
        logit_bias=_logit_bias(body, vocab_size),
        speculation=body.speculation != "off",
        beam_width=beam_width,
        grammar=grammar,
        **given,
    )


_PLAIN = (
    *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "seed", "ignore_eos", "prompt_logprobs"),
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


def _token_id(token_id: int, vocab_size: int, field: str) -> int:
    if not 0 <= token_id < vocab_size:
        raise RequestError(f"{field}: token id {token_id} is outside the vocabulary of {vocab_size} tokens", field)
    return token_id


def make_requests(
    body: ChatRequest | CompletionRequest, prompts: Sequence[EncodedPrompt], call_id: str, service: Service
) -> tuple[int, list[Request]]:
    """The reported seed, and one Request per choice, by prompt and then by n. A beam search is one Request.

    Choice i of every prompt uses choice_seed(seed, i), so a prompt in a list gets the same output as if sent alone.
    """
    params, n = sampling_params(body, service.vocab_size), body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts x n = {n} exceed {MAX_CHOICES} choices in one call; send several calls", "n"
        )
    for prompt in prompts:
        try:
            check_prompt(prompt.ids, service.max_model_len, service.vocab_size, params.max_tokens)
        except RequestError as error:
            raise RequestError(error.message, _client_field(error.param, body), error.code) from None
    # 53 bits: the seed is reported as a JSON number, and JavaScript rounds larger ones.
    seed = secrets.randbits(53) if params.seed is None else params.seed
    choices = [(prompt, i) for prompt in prompts for i in range(n if params.beam_width is None else 1)]
    return seed, [
        Request(
            request_id=f"{call_id}-{k}",
            prompt_ids=prompt.ids,
            params=params,
            seed=choice_seed(seed, i),
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
        )
        for k, (prompt, i) in enumerate(choices)
    ]


def _client_field(param: str | None, body: Sampled) -> str | None:
    if not isinstance(body, ChatRequest):
        return param
    if param == "max_tokens" and body.max_completion_tokens is not None:
        return "max_completion_tokens"
    return "messages" if param == "prompt" else param


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as HTTP: status, body in OpenAI's shape, headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def failure(error: Exception, request_id: str) -> Failure:
    """Map an exception to an HTTP error. Unexpected errors are logged and not shown to the client."""
    if isinstance(error, RequestValidationError):
        error = explain(error)
    headers = {"x-request-id": request_id}
    if isinstance(error, RequestError):
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Failure(error.status, error_body(error.message, error.kind, error.param, error.code), headers)
    if isinstance(error, EngineError):
        seconds = max(error.retry_after_s, 0.001)
        headers |= {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}
        message = error.message
        if isinstance(error, GroupError):  # its text contains nodes and ranks
            logger.warning("request %s: %s", request_id, error.message)
            message = "the model is restarting; try again"
        return Failure(error.status, error_body(message, error.kind), headers)
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
        return Failure(error.status_code, error_body(str(error.detail), RequestError.kind), headers)
    logger.error("request %s failed", request_id, exc_info=error)
    headers["x-should-retry"] = "false"  # a bug fails again; by default clients retry every 500 twice
    return Failure(500, error_body(f"internal error; request id {request_id}", "server_error"), headers)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape; all four keys are required."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def explain(error: RequestValidationError) -> RequestError:
    """FastAPI's list of validation errors as one sentence about the first invalid field."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        cause = first.get("ctx", {}).get("error", first["msg"])
        return RequestError(f"the body is not valid JSON: {cause} (character {first['loc'][-1]})")
    if len(first["loc"]) < 2:
        return RequestError("the body must be a JSON object, sent with content-type: application/json")
    field = str(first["loc"][1])
    if first["type"] == "missing":
        return RequestError(f"{_path(first['loc'])} is required", field, "missing_required_parameter")
    same = [e for e in error.errors() if e["loc"][1] == first["loc"][1]]
    # A field of a union type has one error per type. Those of the type that was sent say what is wrong with it.
    same = [e for e in same if _error_code(e) != INVALID_TYPE] or same
    texts = dict.fromkeys(map(_error_text, same))
    path = _path(same[0]["loc"]) if len(texts) == 1 else field
    return RequestError(f"{path}: {'; or '.join(list(texts)[:4])}", field, _error_code(same[0]))


INVALID_TYPE = "invalid_type"
_CODES = {  # OpenAI's, by pydantic's error type
    "too_long": "array_above_max_length",
    "too_short": "empty_array",  # the minimum is 1 everywhere
    "string_too_long": "string_above_max_length",
    "literal_error": "invalid_value",
    "value_error": "invalid_value",
    "int_parsing_size": "integer_above_max_value",
}
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _error_code(error: Mapping[str, Any]) -> str:
    """OpenAI's code for one of pydantic's errors."""
    if _not_finite(error):
        return "invalid_value"
    sides = {"greater_than": "below_min_value", "less_than": "above_max_value"}
    for kind, side in sides.items():
        if error["type"].startswith(kind):
            bound = next(iter(error["ctx"].values()))
            return f"{'decimal' if isinstance(bound, float) else 'integer'}_{side}"
    return "empty_string" if _is_empty_text(error) else _CODES.get(error["type"], INVALID_TYPE)


def _error_text(error: Mapping[str, Any]) -> str:
    given = _not_finite(error)
    if given is not None:
        return f"must be a finite number, got {given}"
    return "must not be empty" if _is_empty_text(error) else str(error["msg"]).removeprefix("Value error, ")


def _is_empty_text(error: Mapping[str, Any]) -> bool:
    return error["type"] in ("too_short", "string_too_short") and error.get("input") == ""


def _not_finite(error: Mapping[str, Any]) -> str | None:
    """The number as JavaScript writes it, if it is none that JSON allows."""
    given = error.get("input")
    return _NOT_FINITE.get(str(given)) if isinstance(given, float) else None


def _path(loc: Sequence[int | str]) -> str:
    """("body", "messages", 0, "content", "str") -> messages[0].content"""
    path = str(loc[1])
    for part in loc[2:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_LABELS and "[" not in part:
            path += f".{part}"
    return path
