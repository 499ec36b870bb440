"""A chat completion as a Response object, and the parts of which streams make theirs.

Owns the content of Response objects. Not here: the order of events (stream.py), the way there (to_chat.py).
Ids are made of the chat completion's, so that the same chat gives the same response.
"""

from collections.abc import Sequence
from typing import Any

from medusa_dist.api.responses.schema import ResponsesRequest
from medusa_dist.api.translation.chat_fields import notes_of, steps_of

COMPLETED, INCOMPLETE, IN_PROGRESS, FAILED = "completed", "incomplete", "in_progress", "failed"
_ECHOED = (
    *("instructions", "max_output_tokens", "max_tool_calls", "temperature", "top_p", "top_logprobs", "service_tier"),
    *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "reasoning"),
)


def response_of(request: ResponsesRequest, chat: dict[str, Any]) -> dict[str, Any]:
    """The Response object of a complete chat completion."""
    choice, ident = chat["choices"][0], ident_of(chat)
    message, status = choice["message"], status_of(choice["finish_reason"])
    reasoning, text = message.get("reasoning_content"), message.get("content")
    calls = message.get("tool_calls") or []
    items = []
    if reasoning:
        items.append(reasoning_item(f"{ident}_0", reasoning, COMPLETED))
    if text or not (calls or (reasoning and status == INCOMPLETE)):
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        items.append(message_item(f"{ident}_{len(items)}", text or "", logprobs, COMPLETED))
    for call in calls:
        function = call["function"]
        index = f"{ident}_{len(items)}"
        items.append(call_item(index, call["id"], function["name"], function["arguments"], COMPLETED))
    items[-1]["status"] = status  # what the limit cut is the last item
    notes = notes_of(chat, "metrics")
    return ended(opened(request, chat), items, status, chat["usage"], steps_of(choice)) | notes


def ident_of(chat: dict[str, Any]) -> str:
    """What the ids of a response and its items share; those of items end with their place in the output."""
    return str(chat["id"]).rpartition("-")[2]


def status_of(finish_reason: str) -> str:
    """The status of a response whose chat completion ended for this reason."""
    return INCOMPLETE if finish_reason == "length" else COMPLETED


def opened(request: ResponsesRequest, chat: dict[str, Any]) -> dict[str, Any]:
    """The Response object before there is any output. chat: the completion, or its first chunk."""
    text = request.field("text") or {}
    return {
        "id": f"resp_{ident_of(chat)}",
        "object": "response",
        "created_at": chat["created"],
        "status": IN_PROGRESS,
        "error": None,
        "incomplete_details": None,
        "model": chat["model"],
        "output": [],
        **{name: request.field(name) for name in _ECHOED},
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "text": text | {"format": text.get("format") or {"type": "text"}},
        "tool_choice": request.field("tool_choice") or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in request.field("tools") or ()],
        "truncation": "disabled",
        "background": False,
        "store": False,
        "previous_response_id": None,
        "usage": None,
        **notes_of(chat),
    }


def ended(
    head: dict[str, Any],
    items: Sequence[dict[str, Any]],
    status: str,
    usage: dict[str, Any],
    steps: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The Response object at its end. head: as it was opened; usage: of the chat completion; steps: none if not asked
    for.
    """
    details = {"reason": "max_output_tokens"} if status == INCOMPLETE else None
    changed = {"status": status, "incomplete_details": details, "output": list(items), "usage": usage_of(usage)}
    return head | changed | ({"steps": list(steps)} if steps else {})


def usage_of(usage: dict[str, Any]) -> dict[str, Any]:
    """Token counts by their names in this API."""
    details = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        # Every prompt is written to the prefix cache; nothing is counted or charged for it.
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }


def reasoning_item(ident: str, text: str, status: str) -> dict[str, Any]:
    """An output item of type reasoning."""
    content = [reasoning_part(text)]
    return {"id": f"rs_{ident}", "type": "reasoning", "summary": [], "content": content, "status": status}


def message_item(ident: str, text: str, logprobs: list[Any], status: str) -> dict[str, Any]:
    """An output item of type message. logprobs: as in chat."""
    content = [text_part(text, logprobs)]
    return {"id": f"msg_{ident}", "type": "message", "role": "assistant", "content": content, "status": status}


def call_item(ident: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """An output item of type function_call."""
    item = {"id": f"fc_{ident}", "type": "function_call", "call_id": call_id, "name": name}
    return {**item, "arguments": arguments, "status": status}


def reasoning_part(text: str) -> dict[str, Any]:
    """The content of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    """The content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
