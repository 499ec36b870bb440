"""Prompts of `LLM`: texts, token ids, vLLM's dicts and conversations, each checked by its place in the list.

Owns which forms a prompt may have. Not here: tokenisation (the model's tokenizer), chat templates
(text/chat_template.py), checks against the model (request.py).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from pydantic import ValidationError

from medusa_dist.api.schema.tools import ReplayedCall
from medusa_dist.errors import RequestError

# One prompt: a text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}, with "cache_salt" if needed.
Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]

_KEYS = ("prompt", "prompt_token_ids", "cache_salt")
_FORMS = 'a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}'


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """One prompt as token ids. text: as it was given; None if it came as ids. cache_salt: of this prompt alone."""

    ids: tuple[int, ...]
    text: str | None = None
    cache_salt: str | None = None


def split_prompts(prompts: Any) -> list[Any]:
    """The prompts of a call: one, or a list. Raises RequestError for what is neither."""
    prompts = _plain(prompts)
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes | bytearray | AbstractSet) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts must be {_FORMS}, or a list of these; got {_shown(prompts)}", "prompts")
    listed = list(prompts)
    return [listed] if listed and all(map(_is_id, listed)) else listed


def read_prompt(prompt: Any, index: int, encode: Callable[[str], Sequence[int]]) -> PromptTokens:
    """Prompt number `index` of a call. encode: the tokenizer. Raises RequestError that names the prompt."""
    where, prompt = f"prompts[{index}]", _plain(prompt)
    if isinstance(prompt, Mapping):
        return _read_dict(prompt, where, encode)
    if isinstance(prompt, str):
        return PromptTokens(_encoded(prompt, where, encode), prompt)
    if isinstance(prompt, list | tuple | range):
        return PromptTokens(_token_ids(prompt, where))
    raise RequestError(f"{where}: must be {_FORMS}; got {_shown(prompt)}", "prompt")


def _read_dict(prompt: Mapping[str, Any], where: str, encode: Callable[[str], Sequence[int]]) -> PromptTokens:
    given = {key: value for key, value in prompt.items() if value is not None}
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise RequestError(f"{where}: {unknown[0]!r} is not supported; known keys: {', '.join(_KEYS)}", "prompt")
    text, ids, salt = (given.get(key) for key in _KEYS)
    for key, value in (("prompt", text), ("cache_salt", salt)):
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{where}: {key} must be a text, got {_shown(value)}", "prompt")
    if ids is None and text is None:
        raise RequestError(
            f'{where}: a dict needs "prompt" or "prompt_token_ids"; got {_shown(dict(prompt))}', "prompt"
        )
    if ids is None:
        return PromptTokens(_encoded(text or "", where, encode), text, salt)
    ids = _plain(ids)
    if not isinstance(ids, list | tuple | range):
        raise RequestError(f"{where}: prompt_token_ids must be a list of token ids, got {_shown(ids)}", "prompt")
    return PromptTokens(_token_ids(ids, f"{where}: prompt_token_ids"), text, salt)


def _encoded(text: str, where: str, encode: Callable[[str], Sequence[int]]) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no tokenizer takes
        raise RequestError(f"{where}: the text is not valid Unicode; got {_shown(text)}", "prompt") from None
    try:
        ids = tuple(encode(text))
    except RequestError as error:
        raise in_prompt(error, where) from None
    return _not_empty(ids, where)


def _token_ids(values: Sequence[Any], where: str) -> tuple[int, ...]:
    wrong = next((place for place, value in enumerate(values) if not _is_id(value)), None)
    if wrong is not None:
        raise RequestError(f"{where}: token ids must be integers; got {_shown(values[wrong])} at [{wrong}]", "prompt")
    return _not_empty(tuple(map(int, values)), where)


def _not_empty(ids: tuple[int, ...], where: str) -> tuple[int, ...]:
    if not ids:
        raise RequestError(f"{where}: the prompt is empty; give at least one token", "prompt")
    return ids


def _is_id(value: Any) -> bool:
    """Whether the value is an integer, of Python or numpy; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A numpy array or a tensor as a list; other values as they are."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _shown(value: Any) -> str:
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def in_prompt(error: RequestError, where: str) -> RequestError:
    """The error with the place of the prompt in front."""
    return RequestError(f"{where}: {error.message}", error.param, error.code)


def split_conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """The conversations of a call: a list of messages, or a list of such. Raises RequestError naming the place."""
    listed = _messages(messages, "messages")
    if isinstance(listed[0], Mapping):
        return [[_message(each, f"messages[{i}]") for i, each in enumerate(listed)]]
    return [
        [_message(each, f"messages[{i}][{k}]") for k, each in enumerate(_messages(conversation, f"messages[{i}]"))]
        for i, conversation in enumerate(listed)
    ]


def _messages(given: Any, where: str) -> Sequence[Any]:
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
        raise RequestError(f"{where}: must be a list of messages; got {_shown(given)}", "messages")
    return given


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message with its content as one text, as over HTTP."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f'{where}: must be {{"role": ..., "content": ...}}; got {_shown(message)}', "messages")
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        raise RequestError(f"{where}: a message with role {message['role']!r} needs content", "messages")
    if isinstance(content, list | tuple):
        content = "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise RequestError(
            f"{where}: content must be a text or a list of text parts, got {_shown(content)}", "messages"
        )
    calls = message.get("tool_calls")
    if not calls:
        return {**message, "content": content or ""}
    if not isinstance(calls, list | tuple):
        raise RequestError(f"{where}.tool_calls: must be a list of calls, got {_shown(calls)}", "messages")
    turns = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return {**message, "content": content or "", "tool_calls": turns}


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call of an earlier answer as chat templates get it: arguments as an object."""
    try:
        function = call["function"]
        if isinstance(function["arguments"], Mapping):
            call = {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}
        return ReplayedCall.model_validate(dict(call)).turn()
    except (KeyError, TypeError):
        raise RequestError(
            f'{where}: must be {{"id": ..., "type": "function", "function": {{"name": ..., "arguments": ...}}}}, got '
            f"{_shown(call)}",
            "messages",
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{where}.{'.'.join(map(str, first['loc']))}: {first['msg']}", "messages") from None
    except RequestError as error:
        raise RequestError(f"{where}: {error.message.removeprefix('messages[].tool_calls[].')}", "messages") from None


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RequestError(f'{where}: must be {{"type": "text", "text": ...}}, got {_shown(part)}', "messages")
