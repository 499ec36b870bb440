"""A chat completion as a Message object, and the parts of which streams make theirs.

Owns the content of Message objects. Not here: the order of events (stream.py), the way there (to_chat.py).
"""

from typing import Any

from pydantic_core import from_json

from medusa_dist.api.translation.chat_fields import notes_of, steps_of

# What the API calls a signature proves who wrote a thinking block. Nothing here is signed, and none is checked.
SIGNATURE = "unsigned"
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


def message_of(chat: dict[str, Any]) -> dict[str, Any]:
    """The Message object of a complete chat completion."""
    choice = chat["choices"][0]
    message = choice["message"]
    content = []
    if message.get("reasoning_content"):
        content.append(thinking_block(message["reasoning_content"], SIGNATURE))
    if message.get("content"):
        content.append(text_block(message["content"]))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        content.append(tool_use_block(call["id"], function["name"], _input(function["arguments"])))
    steps = {"steps": steps_of(choice)} if steps_of(choice) else {}
    return opened(chat, chat["usage"]) | {"content": content, **stopped(choice)} | notes_of(chat, "metrics") | steps


def opened(chat: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    """The Message object before there is any content. chat: the completion, or its first chunk."""
    return {
        "id": f"msg_{str(chat['id']).rpartition('-')[2]}",
        "type": "message",
        "role": "assistant",
        "model": chat["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(usage),
        **notes_of(chat),
    }


def stopped(choice: dict[str, Any]) -> dict[str, Any]:
    """Why a message ended: stop_reason and stop_sequence, of a choice that has a finish_reason."""
    if choice["finish_reason"] == "stop" and isinstance(choice["stop_reason"], str):
        return {"stop_reason": "stop_sequence", "stop_sequence": choice["stop_reason"]}
    return {"stop_reason": _STOP_REASONS.get(choice["finish_reason"], "end_turn"), "stop_sequence": None}


def usage_of(usage: dict[str, Any]) -> dict[str, Any]:
    """Token counts by their names in this API. input_tokens are those that were not in the prefix cache."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,  # the prompt is written to the cache, but not counted or charged for it
        "output_tokens": usage["completion_tokens"],
    }


def thinking_block(text: str, signature: str) -> dict[str, Any]:
    """A content block with reasoning."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def text_block(text: str) -> dict[str, Any]:
    """A content block with text."""
    return {"type": "text", "text": text}


def tool_use_block(call_id: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A content block with a tool call."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": values}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; of one that max_tokens cut, those that are there, as clients read a stream that ends."""
    try:
        values = from_json(arguments or "{}", allow_partial="trailing-strings")
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
