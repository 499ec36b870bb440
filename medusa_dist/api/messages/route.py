"""The routes of Anthropic's Messages API.

Owns their paths. Not here: translation (to_chat.py, from_chat.py, stream.py), generation (api/routes.py), the shape of
errors (errors.py). The headers anthropic-version and anthropic-beta are not needed; what they would change is said in
the fields.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from medusa_dist.api.convert import check_model
from medusa_dist.api.messages.from_chat import message_of
from medusa_dist.api.messages.schema import CountTokensRequest, MessagesRequest
from medusa_dist.api.messages.stream import MessageEvents
from medusa_dist.api.messages.to_chat import OWN_NAMES, chat_body
from medusa_dist.api.service import Service
from medusa_dist.api.translation.answer_form import AnswerChat, AnswerForm, PromptOfChat
from medusa_dist.api.translation.own_words import chat_request, own_words

_FORM = AnswerForm(message_of, MessageEvents)
_ERROR = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "description": "Anthropic's error",
                "properties": {
                    "type": {"const": "error"},
                    "error": {
                        "type": "object",
                        "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
                        "required": ["type", "message"],
                    },
                    "request_id": {"type": "string"},
                },
                "required": ["type", "error", "request_id"],
            }
        }
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {**_ERROR, "description": "The request is invalid."},
    401: {**_ERROR, "description": "The API key is missing or wrong; send it as x-api-key."},
    404: {**_ERROR, "description": "No such model or route."},
    429: {**_ERROR, "description": "The queue is full; see Retry-After."},
    500: {**_ERROR, "description": "A bug."},
    503: {**_ERROR, "description": "The model is starting or restarting; see Retry-After."},
    "default": {**_ERROR, "description": "Any other error."},
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {"schema": {"type": "object", "description": "Anthropic's Message object"}},
            "text/event-stream": {},  # with stream: true; Anthropic's events of a message
        }
    },
    **ERRORS,
}


class TokenCount(BaseModel):
    """Response of POST /v1/messages/count_tokens."""

    input_tokens: int


def add_messages(app: FastAPI, get_service: Callable[[], Service], answer: AnswerChat, prompt_of: PromptOfChat) -> None:
    """Add the routes. answer, prompt_of: of the chat route."""

    @app.post("/v1/messages", responses=_ANSWER)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Create a message."""
        with own_words(OWN_NAMES):
            return await answer(chat_request(chat_body(body)), request, get_service(), _FORM)

    @app.post("/v1/messages/count_tokens", responses=ERRORS)
    async def count_tokens(body: CountTokensRequest) -> TokenCount:
        """Count the tokens of the prompt that a message would be made of."""
        service = get_service()
        with own_words(OWN_NAMES):
            check_model(body.model or None, service)
            prompt = await prompt_of(chat_request(chat_body(body)), service)
        return TokenCount(input_tokens=len(prompt.ids))
