"""Converts request bodies to Requests, and exceptions to HTTP errors.

Owns prompts, seeds and the one mapping from exceptions to responses. Not here: types and ranges (schema/requests.py),
sampling fields (schema/sampling.py), response bodies (response_builder.py).
"""

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from medusa_dist.api.chat.answering import Answering, Conversation
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest, Sampled
from medusa_dist.api.schema.sampling import sampling_params, with_own_limit
from medusa_dist.api.schema.validation import explain
from medusa_dist.api.service import Service
from medusa_dist.errors import ConflictError, EngineError, GroupError, NotFoundError, RequestError, StorageError
from medusa_dist.request import Request, check_prompt, choice_seed
from medusa_dist.sampling_fields import default
from medusa_dist.text.bad_words import with_bad_word_ids
from medusa_dist.text.bounded_render import run_bounded
from medusa_dist.text.chat_template import encode_chat
from medusa_dist.text.control_tokens import literal_encoder
from medusa_dist.text.no_tokenizer import NoTokenizer

logger = logging.getLogger(__name__)
T = TypeVar("T")

LONG_TEXT = 4_000  # characters; for shorter texts a thread costs more than tokenising in place
MAX_CHOICES = 1024  # prompts x n of one call


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt. text: as the client sent it, for echo (decoded if it sent token ids)."""

    text: str
    ids: tuple[int, ...]


async def off_loop(text_length: int, work: Callable[[], T]) -> T:
    """Run CPU work on texts: directly if they are short, in a thread if they would block other streams."""
    return work() if text_length < LONG_TEXT else await anyio.to_thread.run_sync(work)


def check_model(name: str | None, service: Service) -> None:
    """Raise NotFoundError unless the service serves this model. None: its only one."""
    if name is not None and name != service.name:
        raise NotFoundError(
            f"model {name!r} does not exist here; this service serves {service.name!r}", "model", "model_not_found"
        )


async def chat_prompt(
    conversation: Conversation, add_generation_prompt: bool | None, service: Service, **template: Any
) -> EncodedPrompt:
    """A conversation through the model's chat template. Raises RequestError where there is none or it objects.

    add_generation_prompt: None = unless the last message is to be continued. template: as in encode_chat.
    """
    if add_generation_prompt is None:
        add_generation_prompt = not template.get("continue_final_message")

    def render() -> EncodedPrompt:
        text, ids = encode_chat(
            service.tokenizer,
            conversation.turns,
            tools=conversation.tools,
            add_generation_prompt=add_generation_prompt,
            instead="/v1/completions",
            sanitize=service.sanitize_control_tokens,
            run=run_bounded,
            **template,
        )
        return EncodedPrompt(text, tuple(ids))

    return await anyio.to_thread.run_sync(render)


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
            prompts.append(truncated(await text_prompt(item, service, *options), body, service))
        else:
            ids = item[_kept(len(item), body, service)]
            # Before the tokenizer sees the ids.
            check_prompt(ids, service.max_model_len, service.vocab_size, body.max_tokens)
            prompts.append(EncodedPrompt(_decoded(ids, service.tokenizer), tuple(ids)))
    return prompts


def truncated(prompt: EncodedPrompt, body: ChatRequest | CompletionRequest, service: Service) -> EncodedPrompt:
    """The part of a prompt that truncate_prompt_tokens keeps, its text decoded anew."""
    kept = prompt.ids[_kept(len(prompt.ids), body, service)]
    return prompt if len(kept) == len(prompt.ids) else EncodedPrompt(_decoded(kept, service.tokenizer), kept)


def _kept(length: int, body: ChatRequest | CompletionRequest, service: Service) -> slice:
    """Which tokens of a prompt are kept. As many as fit: beside the output's max_tokens, or one token of output."""
    most = body.truncate_prompt_tokens
    if most is None:
        return slice(None)
    if most == -1:
        output = body.max_tokens
        if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
            output = body.max_completion_tokens
        if output is None:
            output = 1 if isinstance(body, ChatRequest) else default("max_tokens")
        most = max(1, service.max_model_len - output)
    return slice(None, most) if body.truncation_side == "right" else slice(max(0, length - most), None)


def _decoded(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of a prompt that came as token ids, for echo; empty where there is no tokenizer."""
    return "" if isinstance(tokenizer, NoTokenizer) else str(tokenizer.decode(ids))


def make_requests(
    body: ChatRequest | CompletionRequest,
    prompts: Sequence[EncodedPrompt],
    call_id: str,
    service: Service,
    plan: Answering | None = None,
) -> tuple[int, list[Request]]:
    """The reported seed, and one Request per choice, by prompt and then by n. A beam search is one Request.

    plan: how a chat is answered.

    Choice i of every prompt uses choice_seed(seed, i), so a prompt in a list gets the same output as if sent alone.
    """
    own, n = service.default_sampling_params, body.n or 1
    params = with_bad_word_ids(sampling_params(body, service.vocab_size, own), service.tokenizer)
    if plan is not None:
        params = plan.constrained(params, prompts[0].text, service.tokenizer)
    if len(prompts) * n > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts x n = {n} exceed {MAX_CHOICES} choices in one call; send several calls",
            "n" if n > 1 else "prompt",
        )
    for prompt in prompts:
        try:
            check_prompt(prompt.ids, service.max_model_len, service.vocab_size, params.max_tokens)
        except RequestError as error:
            raise RequestError(error.message, _client_field(error.param, body), error.code) from None
    each = [with_own_limit(body, params, own, service.max_model_len - len(prompt.ids)) for prompt in prompts]
    # 53 bits: the seed is reported as a JSON number, and JavaScript rounds larger ones.
    seed = secrets.randbits(53) if params.seed is None else params.seed
    choices = [
        (prompt, one, i)
        for prompt, one in zip(prompts, each, strict=True)
        for i in range(n if params.beam_width is None else 1)
    ]
    return seed, [
        Request(
            request_id=f"{call_id}-{k}",
            prompt_ids=prompt.ids,
            params=one,
            seed=choice_seed(seed, i),
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            explain=bool(body.explain),
        )
        for k, (prompt, one, i) in enumerate(choices)
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
        if isinstance(error, ConflictError):  # clients retry a 409
            headers["x-should-retry"] = "false"
        return Failure(error.status, error_body(error.message, error.kind, error.param, error.code), headers)
    if isinstance(error, EngineError):
        seconds = max(error.retry_after_s, 0.001)
        headers |= {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}
        message = error.message
        if isinstance(error, GroupError):  # its text contains nodes and ranks
            logger.warning("request %s: %s", request_id, error.message)
            message = "the model is restarting; try again"
        return Failure(error.status, error_body(message, error.kind), headers)
    if isinstance(error, StorageError):
        logger.warning("request %s: %s", request_id, error.message)
        headers["x-should-retry"] = "false"  # somebody has to make room, or to set a key
        return Failure(error.status, error_body(error.message, error.kind), headers)
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
        return Failure(error.status_code, error_body(str(error.detail), RequestError.kind), headers)
    logger.error("request %s failed", request_id, exc_info=error)
    headers["x-should-retry"] = "false"  # a bug fails again; by default clients retry every 500 twice
    return Failure(500, error_body(f"internal error; request id {request_id}", "server_error"), headers)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape; all four keys are required."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
