"""Errors of a translated chat request in the words of the API that the client speaks.

Owns the renaming of fields in errors. Not here: which chat field is which field of an API (messages/to_chat.py,
responses/to_chat.py).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from medusa_dist.api.schema.requests import ChatRequest
from medusa_dist.api.schema.validation import explain
from medusa_dist.errors import RequestError


@contextmanager
def own_words(names: Mapping[str, str]) -> Iterator[None]:
    """Raise every RequestError with the client's names of fields. names: chat's name of a field -> the client's."""
    try:
        yield
    except RequestError as error:
        raise _renamed(error, names) from None


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """The body of a chat request. Raises RequestError, with chat's names of fields, unless it is valid."""
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        within_body = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
        raise explain(RequestValidationError(within_body)) from None


def _renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error with other names. Names that are English words count only where the error is about them."""
    base = re.split(r"[.\[]", error.param or "")[0]
    own = names.get(base, base)
    param = own + (error.param or "")[len(base) :]
    message = error.message
    for name, new in names.items():
        if name == base or "_" in name:
            message = re.sub(rf"\b{name}\b", new, message)
    return type(error)(message, param or None, error.code)
