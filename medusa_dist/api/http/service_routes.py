"""Routes about the service: models, health, load, version, metrics, and the tokenizer.

Owns them and which of them ask the model's process. Not here: generation (api/routes.py).
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from medusa_dist import __version__
from medusa_dist.api.chat.answering import answering
from medusa_dist.api.convert import chat_prompt, check_model, off_loop, text_prompt
from medusa_dist.api.http.failures import Json
from medusa_dist.api.http.paths import without_extra_slashes
from medusa_dist.api.messages.errors import speaks_anthropic
from medusa_dist.api.messages.models import model_info, model_page
from medusa_dist.api.schema.requests import DetokenizeRequest, TokenizeRequest
from medusa_dist.api.schema.responses import (
    DetokenizeReply,
    LoadReply,
    ModelCard,
    ModelList,
    TokenizeReply,
    VersionReply,
)
from medusa_dist.api.schema.sampling import check_token_ids
from medusa_dist.api.service import Service

GetService = Callable[[], Service]
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def add_service_routes(app: FastAPI, get_service: GetService) -> None:
    """Add all routes of this file."""
    _add_models(app, get_service)
    _add_state(app, get_service)
    _add_tokenizer(app, get_service)


def _add_models(app: FastAPI, get_service: GetService) -> None:
    @app.get("/v1/models", response_model=ModelList)
    async def models(request: Request) -> ModelList | Response:
        """List the served model. With the header anthropic-version, in Anthropic's form, with its query parameters."""
        service = get_service()
        if speaks_anthropic(request.scope):
            query = request.query_params
            lifecycles = [*query.getlist("lifecycle"), *query.getlist("lifecycle[]")]
            return Json(model_page([model_info(service)], query, lifecycles))
        return ModelList(data=[_card(service)])

    @app.get("/v1/models/{model:path}", response_model=ModelCard)
    async def model(model: str, request: Request) -> ModelCard | Response:
        """Return a model by its id, which may contain slashes; with anthropic-version in Anthropic's form."""
        service = get_service()
        if model != without_extra_slashes(service.name):  # as the path was, before it came here
            check_model(model, service)
        return Json(model_info(service)) if speaks_anthropic(request.scope) else _card(service)


def _add_state(app: FastAPI, get_service: GetService) -> None:
    async def health() -> Response:
        """200 while the model decodes, else 503 with the reason."""
        state = get_service().health()
        return PlainTextResponse(state.text, 200 if state.ok else 503)

    app.get("/health", response_class=PlainTextResponse)(health)
    app.get("/ping", response_class=PlainTextResponse)(health)
    app.post("/ping", response_class=PlainTextResponse)(health)  # SageMaker's contract, as in vLLM

    @app.get("/live", response_class=PlainTextResponse)
    async def live() -> Response:
        """200 while the process that answers HTTP runs, also while the model loads or restarts."""
        return PlainTextResponse("live")

    @app.get("/version")
    async def version() -> VersionReply:
        """Return the version of medusa_dist."""
        return VersionReply(version=__version__)

    @app.get("/load")
    async def load() -> LoadReply:
        """Return what the replica that answers does: its requests, its KV cache, and totals to compute rates from."""
        service = get_service()
        load = service.load()
        return LoadReply(
            server_load=service.num_requests,
            running_sequences=load.num_running,
            waiting_sequences=load.num_waiting,
            kv_used_fraction=load.kv_used_fraction,
            output_tokens=load.num_tokens,
            sequence_steps=load.num_sequence_steps,
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics of this service in Prometheus' text format, from all nodes."""
        return Response(await get_service().metrics(), media_type=PROMETHEUS)


def _add_tokenizer(app: FastAPI, get_service: GetService) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeReply:
        """Return the token ids of a prompt, or of messages after the chat template."""
        service = get_service()
        check_model(body.model or None, service)
        if body.messages is not None:
            prompt = await chat_prompt(
                answering(body, service.chat_format).conversation(body.messages),
                body.add_generation_prompt,
                service,
                add_special_tokens=bool(body.add_special_tokens),
                continue_final_message=body.continue_final_message,
                chat_template_kwargs=body.chat_template_kwargs,
            )
        else:
            options = (body.add_special_tokens is not False, body.parse_special)
            prompt = await text_prompt(body.prompt or "", service, *options)
        return TokenizeReply(count=len(prompt.ids), max_model_len=service.max_model_len, tokens=list(prompt.ids))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeReply:
        """Return the text of token ids, special tokens included."""
        service = get_service()
        check_model(body.model or None, service)
        check_token_ids(body.tokens, service.vocab_size, "tokens")
        text = await off_loop(len(body.tokens), lambda: service.tokenizer.decode(body.tokens))
        return DetokenizeReply(prompt=text)


def _card(service: Service) -> ModelCard:
    extra: dict[str, Any] = dict(service.describe())
    return ModelCard(id=service.name, created=service.created, max_model_len=service.max_model_len, **extra)
