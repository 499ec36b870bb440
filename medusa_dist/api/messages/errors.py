"""Errors of the Messages API: Anthropic's shape and types.

Owns that shape, and which requests get it. Not here: which exception is which HTTP error (api/convert.py), the response
(api/http/failures.py).
"""

import re
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CONTEXT = re.compile(r"context length is (\d+) tokens\. .*\((\d+) in the prompt, (\d+) in the completion\)")


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API, with extra slashes or without: by its path, or by the header that all
    requests of that API have, where OpenAI's API has the same path.
    """
    path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
    parts = [part for part in path.split("/") if part][:2]
    return parts == ["v1", "messages"] or (parts == ["v1", "models"] and "anthropic-version" in Headers(scope=scope))


def messages_error(status: int, body: dict[str, Any], request_id: str) -> dict[str, Any]:
    """An error body in OpenAI's shape as one in Anthropic's, which is also the event of a stream that fails."""
    error = body["error"]
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = _in_known_words(error["message"])
    if error["param"] and error["param"] not in message:
        message = f"{error['param']}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def _in_known_words(message: str) -> str:
    """A prompt that is too long, with Anthropic's words before ours: coding agents read them, and send less."""
    found = _CONTEXT.search(message)
    if found is None:
        return message
    limit, prompt, output = map(int, found.groups())
    if prompt >= limit:
        return f"prompt is too long: {prompt} tokens > {limit} maximum; {message}"
    return f"input length and `max_tokens` exceed context limit: {prompt} + {output} > {limit}; {message}"
