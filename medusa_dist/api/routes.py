"""The FastAPI application: OpenAI's routes over a Service.

Owns which path does what. Not here: the meaning of fields (convert.py), response bodies (response_builder.py), tasks
and client disconnects (call.py). All handlers are async: a sync handler would not notice a disconnect.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from medusa_dist.api.auth import ApiKey, RequestId, check_api_key, request_id
from medusa_dist.api.call import Call, ClientGone
from medusa_dist.api.convert import (
    EncodedPrompt,
    chat_prompt,
    check_model,
    completion_prompts,
    failure,
    make_requests,
    text_prompt,
)
from medusa_dist.api.response_builder import ChatAnswer, CompletionAnswer, Facts, ResponseBuilder
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest, TokenizeRequest
from medusa_dist.api.schema.responses import ERRORS, ChatReply, CompletionReply, ModelCard, ModelList, TokenizeReply
from medusa_dist.api.service import Service
from medusa_dist.api.sse import open_stream
from medusa_dist.errors import MedusaError
from medusa_dist.text.text_stream import TextStream

GetService = Callable[[], Service]
_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "with stream: true; OpenAI's chunks"}}}


def build_api(get_service: GetService, api_key: str | None = None) -> FastAPI:
    """Build the application. get_service: called per request; may raise EngineError while there is no service.

    api_key: None = no authentication. Raises ConfigError for a key that cannot be sent in a header.
    """
    app = FastAPI(
        title="medusa_dist", description="OpenAI-compatible API with exact speculative decoding.", responses=ERRORS
    )
    _add_generation(app, get_service)
    _add_information(app, get_service)
    for kind in (MedusaError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_failure)
    app.add_exception_handler(ClientGone, _answer_nobody)
    if api_key is not None:
        app.add_middleware(ApiKey, key=check_api_key(api_key))
    app.add_middleware(RequestId)  # outermost: responses of all layers carry the id
    return app


class Json(JSONResponse):
    """JSON in ASCII: an error may repeat client input that is not valid Unicode."""

    def render(self, content: Any) -> bytes:
        """The encoded body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


async def _answer_failure(request: Request, error: Exception) -> Response:
    response = failure(error, request_id(request.scope))
    return Json(response.body, response.status, response.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's status for a client that disconnected


def _add_generation(app: FastAPI, get_service: GetService) -> None:
    @app.post("/v1/chat/completions", responses={200: {"model": ChatReply, "content": _STREAM}})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Create a chat completion."""
        service = get_service()
        check_model(body.model, service)
        prompt = await chat_prompt(body.messages, body.add_generation_prompt is not False, service)
        return await _generate(body, [prompt], request, service)

    @app.post("/v1/completions", responses={200: {"model": CompletionReply, "content": _STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Create completions of one or more prompts."""
        service = get_service()
        check_model(body.model, service)
        return await _generate(body, await completion_prompts(body, service), request, service)


async def _generate(
    body: ChatRequest | CompletionRequest, prompts: Sequence[EncodedPrompt], request: Request, service: Service
) -> Response:
    """Run all choices of a call, and respond with one body or a stream."""
    is_chat = isinstance(body, ChatRequest)
    call_id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
    seed, requests = make_requests(body, prompts, call_id, service)
    tokenizer = service.tokenizer
    num_each = len(prompts) * (body.n or 1) // len(requests)  # choices per request: n with beams, else 1
    contexts = [(r.params, () if is_chat else r.prompt_ids) for r in requests for _ in range(num_each)]
    streams = [TextStream(tokenizer, *context) for context in contexts]
    facts = Facts(
        call_id=call_id,
        model=service.name,
        system_fingerprint=service.system_fingerprint,
        seed=seed,
        acceptance=requests[0].params.acceptance,
        num_prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
        choices_per_prompt=body.n or 1,
        num_logprobs=requests[0].params.logprobs,
        num_prompt_logprobs=body.prompt_logprobs,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    builder: ResponseBuilder
    if isinstance(body, ChatRequest):
        builder = ChatAnswer(facts, streams, tokenizer)
    else:
        echoes = [prompt if body.echo else None for prompt in prompts for _ in range(body.n or 1)]
        builder = CompletionAnswer(facts, streams, tokenizer, echoes)
    call = Call(service, requests, streams)
    call.start(request.receive)
    if body.stream:
        return await open_stream(call, builder, request_id(request.scope))
    async with call:
        while call.is_open:
            await call.next()
    return Json(builder.whole())


def _add_information(app: FastAPI, get_service: GetService) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        """List the served model."""
        return ModelList(data=[_card(get_service())])

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> ModelCard:
        """Return a model by its id."""
        service = get_service()
        check_model(model, service)
        return _card(service)

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> Response:
        """200 while the model decodes, else 503 with the reason."""
        state = get_service().health()
        return PlainTextResponse(state.text, 200 if state.ok else 503)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeReply:
        """Return the token ids of a prompt, or of messages after the chat template."""
        service = get_service()
        if body.model is not None:
            check_model(body.model, service)
        if body.messages is not None:
            prompt = await chat_prompt(body.messages, body.add_generation_prompt, service)
        else:
            prompt = await text_prompt(body.prompt or "", service, body.add_special_tokens)
        return TokenizeReply(count=len(prompt.ids), max_model_len=service.max_model_len, tokens=list(prompt.ids))


def _card(service: Service) -> ModelCard:
    extra: dict[str, Any] = dict(service.describe())
    return ModelCard(id=service.name, created=service.created, max_model_len=service.max_model_len, **extra)
