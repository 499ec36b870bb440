"""The FastAPI application: OpenAI's routes over a Service.

Owns the routes that generate, and the order of the layers around all routes. Not here: routes about the service
(http/service_routes.py), other APIs (responses/, messages/, files/, batches/), the meaning of fields (convert.py),
response bodies (response_builder.py), tasks and client disconnects (call.py). All handlers are async: a sync handler
would not notice a disconnect.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from medusa_dist.api.auth import OPEN_PATHS, ApiKey, RequestId, check_api_key
from medusa_dist.api.batches.route import add_batches
from medusa_dist.api.call import ClientGone
from medusa_dist.api.chat.answering import Answering, answering
from medusa_dist.api.chat.chat_answer import ChatAnswer
from medusa_dist.api.convert import (
    EncodedPrompt,
    chat_prompt,
    check_model,
    completion_prompts,
    make_requests,
    truncated,
)
from medusa_dist.api.files.route import add_files
from medusa_dist.api.http.bodies import Bodies
from medusa_dist.api.http.cors import allow_origins
from medusa_dist.api.http.failures import Failures, Json, error_response, request_id
from medusa_dist.api.http.page import add_page, open_paths
from medusa_dist.api.http.paths import HeadAsGet, PlainPaths
from medusa_dist.api.http.service_routes import GetService, add_service_routes
from medusa_dist.api.http.traced_call import Traced, make_call
from medusa_dist.api.http.unknown_route import explain_route
from medusa_dist.api.messages.route import add_messages
from medusa_dist.api.response_builder import CompletionAnswer, Facts, ResponseBuilder
from medusa_dist.api.responses.route import add_responses
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest
from medusa_dist.api.schema.responses import ERRORS, ChatReply, CompletionReply
from medusa_dist.api.service import Service
from medusa_dist.api.sse import open_stream
from medusa_dist.api.translation.answer_form import AnswerForm
from medusa_dist.config_parts.http import HttpConfig
from medusa_dist.errors import MedusaError, StorageOffError
from medusa_dist.storage.store import Store
from medusa_dist.text.text_stream import TextStream
from medusa_dist.tracing.open_tracing import Tracer

_STREAM: dict[str, Any] = {"text/event-stream": {}}  # with stream: true; OpenAI's chunks


def build_api(
    get_service: GetService,
    api_key: str | None = None,
    http: HttpConfig | None = None,
    behind_serve: bool = False,
    store: Store | StorageOffError | None = None,
    page: bool | None = False,
    tracer: Tracer | None = None,
) -> FastAPI:
    """Build the application. get_service: called per request; may raise EngineError while there is no service.

    api_key: None = no authentication. http: None = its defaults. behind_serve: Ray Serve's HTTP server is in front.
    store: of files and batches, or why there is none. page: the config key. tracer: None = no traces.
    Raises ConfigError for a key that cannot be sent in a header.
    """
    http = http or HttpConfig()
    app = FastAPI(
        title="medusa_dist",
        description="OpenAI-compatible API with exact speculative decoding.",
        responses=ERRORS,
        redirect_slashes=False,  # PlainPaths needs no redirect
    )
    _add_generation(app, get_service)
    add_responses(app, get_service, _chat, _prompt_of_chat)
    add_messages(app, get_service, _chat, _prompt_of_chat)
    add_service_routes(app, get_service)

    def get_store() -> Store:
        if isinstance(store, Store):
            return store
        raise StorageOffError("files and batches are off here") if store is None else StorageOffError(store.message)

    add_files(app, get_store, http.cors_origins)
    add_batches(app, get_store)
    add_page(app, page, has_key=api_key is not None)
    for kind in (MedusaError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_failure)
    app.add_exception_handler(ClientGone, _answer_nobody)
    # Each layer is outside of those above it.
    app.add_middleware(Bodies, max_bytes=http.max_body_bytes)
    if api_key is not None:
        app.add_middleware(ApiKey, key=check_api_key(api_key), open_paths=(*OPEN_PATHS, *open_paths(page)))
    app.add_middleware(PlainPaths)  # outside of the key check: both see the same path
    app.add_middleware(HeadAsGet)
    app.add_middleware(Failures)  # responses to errors of the layers above carry the headers of those below
    if http.cors_origins:
        allow_origins(app, http.cors_origins)
    if tracer is not None:
        app.add_middleware(Traced, tracer=tracer)
    app.add_middleware(RequestId, behind_serve=behind_serve)
    return app


async def _answer_failure(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = explain_route(request, error)
    return error_response(error, request.scope)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's status for a client that disconnected


def _add_generation(app: FastAPI, get_service: GetService) -> None:
    @app.post("/v1/chat/completions", responses={200: {"model": ChatReply, "content": _STREAM}})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Create a chat completion."""
        return await _chat(body, request, get_service())

    @app.post("/v1/completions", responses={200: {"model": CompletionReply, "content": _STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Create completions of one or more prompts."""
        service = get_service()
        check_model(body.model or None, service)
        return await _generate(body, await completion_prompts(body, service), request, service)


async def _chat(body: ChatRequest, request: Request, service: Service, form: AnswerForm | None = None) -> Response:
    """Respond to a chat request. form: of another API."""
    check_model(body.model or None, service)
    plan = answering(body, service.chat_format)
    return await _generate(body, [await _encode_chat(body, service, plan)], request, service, plan, form)


async def _prompt_of_chat(body: ChatRequest, service: Service) -> EncodedPrompt:
    return await _encode_chat(body, service, answering(body, service.chat_format))


async def _encode_chat(body: ChatRequest, service: Service, plan: Answering) -> EncodedPrompt:
    prompt = await chat_prompt(
        plan.conversation(body.messages),
        body.add_generation_prompt,
        service,
        add_special_tokens=bool(body.add_special_tokens),
        continue_final_message=bool(body.continue_final_message),
        chat_template_kwargs=plan.template_kwargs(body.chat_template_kwargs),
        documents=body.documents,
    )
    return truncated(prompt, body, service)


async def _generate(
    body: ChatRequest | CompletionRequest,
    prompts: Sequence[EncodedPrompt],
    request: Request,
    service: Service,
    plan: Answering | None = None,
    form: AnswerForm | None = None,
) -> Response:
    """Run all choices of a call, and respond with one body or a stream.

    plan: how a chat is answered. form: of another API; None: OpenAI's own.
    """
    is_chat = isinstance(body, ChatRequest)
    call_id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
    seed, requests = make_requests(body, prompts, call_id, service, plan)
    tokenizer = service.tokenizer
    num_each = len(prompts) * (body.n or 1) // len(requests)  # choices per request: n with beams, else 1
    contexts = [(r.params, () if is_chat else r.prompt_ids) for r in requests for _ in range(num_each)]
    shown_ids = frozenset() if plan is None else plan.shown_ids(tokenizer)
    streams = [TextStream(tokenizer, *context, shown_ids) for context in contexts]
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
        include_usage=bool(body.stream_options and body.stream_options.usage_at_end),
        continuous_usage=bool(body.stream_options and body.stream_options.continuous_usage_stats),
        prompt_ids=tuple(p.ids for p in prompts for _ in range(body.n or 1)) if body.return_token_ids else None,
        names_ids=bool(body.return_tokens_as_token_ids),
        explains=bool(body.explain),
        warnings=() if plan is None else plan.thinking.warnings,
    )
    builder: ResponseBuilder
    if plan is not None:
        builder = ChatAnswer(facts, streams, tokenizer, [plan.message(prompts[0].text) for _ in streams])
    else:
        echoes = [prompt if body.echo else None for prompt in prompts for _ in range(body.n or 1)]
        builder = CompletionAnswer(facts, streams, tokenizer, echoes)
    call = make_call(service, requests, streams, request.scope, is_chat)
    call.start(request.receive)
    if body.stream:
        return await open_stream(call, builder, request_id(request.scope), None if form is None else form.events())
    async with call:
        while call.is_open:
            await call.next()
    return Json(builder.whole() if form is None else form.whole(builder.whole()))
