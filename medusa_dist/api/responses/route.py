"""The routes of OpenAI's Responses API.

Owns their paths. Not here: translation (to_chat.py, from_chat.py, stream.py), generation (api/routes.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response

from medusa_dist.api.convert import check_model
from medusa_dist.api.responses.from_chat import response_of
from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.responses.stream import ResponseEvents
from medusa_dist.api.responses.to_chat import OWN_NAMES, chat_body
from medusa_dist.api.service import Service
from medusa_dist.api.translation.answer_form import AnswerChat, AnswerForm, PromptOfChat
from medusa_dist.api.translation.own_words import chat_request, own_words

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {"schema": {"type": "object", "description": "OpenAI's Response object"}},
            "text/event-stream": {},  # with stream: true; OpenAI's events of a response
        }
    }
}


def add_responses(
    app: FastAPI, get_service: Callable[[], Service], answer: AnswerChat, prompt_of: PromptOfChat
) -> None:
    """Add the routes. answer, prompt_of: of the chat route."""

    @app.post("/v1/responses", responses=_ANSWER)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Create a response."""
        form = AnswerForm(partial(response_of, body), partial(ResponseEvents, body))
        with own_words(OWN_NAMES):
            return await answer(chat_request(chat_body(body)), request, get_service(), form)

    @app.post("/v1/responses/input_tokens")
    async def input_tokens(body: ResponsesRequest) -> dict[str, Any]:
        """Count the tokens of the input that a response would be made of."""
        service = get_service()
        with own_words(OWN_NAMES):
            check_model(body.model or None, service)
            prompt = await prompt_of(chat_request(chat_body(body)), service)
        return {"object": "response.input_tokens", "input_tokens": len(prompt.ids)}
