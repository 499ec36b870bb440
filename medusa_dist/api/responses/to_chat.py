"""A Responses request as the body of a chat request.

Owns which item and field becomes what in chat. Not here: types (schema.py, input_items.py), the way back (from_chat.py,
stream.py).
"""

from typing import Any

from medusa_dist.api.responses.input_items import (
    FunctionCallItem,
    FunctionOutputItem,
    InputItem,
    MessageItem,
    ReasoningItem,
    Texts,
)
from medusa_dist.api.responses.schema import (
    LOGPROBS,
    AllowedFunctions,
    ChosenFunction,
    FlatFunction,
    ResponsesRequest,
    TextFormat,
)
from medusa_dist.api.translation.chat_fields import STREAM_OPTIONS, chat_tool, chosen_tool, given, json_schema
from medusa_dist.api.translation.chat_turns import ChatTurns
from medusa_dist.api.translation.extra_fields import given_extras

# Chat's names of fields, for errors.
OWN_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}


def chat_body(request: ResponsesRequest) -> dict[str, Any]:
    """The body of POST /v1/chat/completions with the same answer; fields without a value are left out."""
    wants_logprobs = LOGPROBS in (request.include or ())
    text, reasoning, choice = request.text, request.reasoning, request.tool_choice
    body = {
        "model": request.model,
        "messages": chat_messages(request),
        "max_completion_tokens": request.max_output_tokens,
        "stop": request.stop,
        "stream": request.stream,
        "stream_options": STREAM_OPTIONS if request.stream else None,
        "tools": [_tool(tool) for tool in request.tools or ()] or None,
        "tool_choice": choice if choice is None or isinstance(choice, str) else _choice(choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": None if text is None or text.format is None else _response_format(text.format),
        "verbosity": text and text.verbosity,
        "reasoning_effort": reasoning and reasoning.effort,
        "logprobs": wants_logprobs or None,
        "top_logprobs": request.top_logprobs if wants_logprobs else None,
        **given_extras(request),
    }
    return given(body)


def chat_messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation: instructions, then input.

    Reasoning, a message and function calls that follow each other are one assistant message, as the model wrote them.
    """
    turns = ChatTurns()
    if request.instructions is not None:
        turns.system([request.instructions])
    if isinstance(request.input, str):
        turns.user([request.input])
    else:
        for item in request.input:
            _add(turns, item)
    return turns.messages()


def _add(turns: ChatTurns, item: InputItem) -> None:
    last = turns.last
    if isinstance(item, MessageItem):
        texts = _texts(item.content)
        if item.role == "user":
            turns.user(texts)
        elif item.role == "assistant":
            turns.assistant(texts, joins=not (last.get("texts") or last.get("tool_calls")))
        else:
            turns.system(texts)
    elif isinstance(item, ReasoningItem):
        texts = [part.text for part in item.content or item.summary or ()]
        if texts:
            turns.assistant(joins=not (last.get("texts") or last.get("tool_calls")))
            turns.reasoning("\n".join(texts))
    elif isinstance(item, FunctionCallItem):
        turns.assistant()
        turns.call(item.call_id, item.name, item.arguments)
    elif isinstance(item, FunctionOutputItem):
        turns.tool(item.call_id, _texts(item.output))


def _texts(content: Texts) -> list[str]:
    return [content] if isinstance(content, str) else [part.text for part in content]


def _tool(tool: FlatFunction) -> dict[str, Any]:
    return chat_tool(tool.name, tool.parameters, description=tool.description, strict=tool.strict)


def _choice(choice: ChosenFunction | AllowedFunctions) -> dict[str, Any]:
    if isinstance(choice, ChosenFunction):
        return chosen_tool(choice.name)
    tools = [chosen_tool(tool.name) for tool in choice.tools]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}


def _response_format(form: TextFormat) -> dict[str, Any]:
    if form.content is None:
        return {"type": form.type}
    return json_schema(form.content, form.name, description=form.description, strict=form.strict)
