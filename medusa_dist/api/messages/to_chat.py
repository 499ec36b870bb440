"""A Messages request as the body of a chat request.

Owns which block and field becomes what in chat. Not here: types (schema.py, blocks.py), the way back (from_chat.py,
stream.py).
"""

from typing import Any

from medusa_dist.api.messages.blocks import TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from medusa_dist.api.messages.schema import (
    CountTokensRequest,
    CustomTool,
    MessagesRequest,
    OutputConfig,
    ToolSelection,
    Turn,
)
from medusa_dist.api.translation.chat_fields import STREAM_OPTIONS, chat_tool, chosen_tool, given, json_schema
from medusa_dist.api.translation.chat_turns import ChatTurns, compact_json
from medusa_dist.api.translation.extra_fields import given_extras

# Chat's names of fields, for errors.
OWN_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
}
ERROR_MARK = "Error: "
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(request: CountTokensRequest) -> dict[str, Any]:
    """The body of POST /v1/chat/completions with the same answer; fields without a value are left out."""
    choice = request.tool_choice
    body: dict[str, Any] = {
        "model": request.model,
        "messages": chat_messages(request),
        "tools": [_tool(tool) for tool in request.tools or ()] or None,
        "tool_choice": choice and _choice(choice),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        "response_format": request.output_config and _response_format(request.output_config),
        "reasoning_effort": None if request.output_config is None else request.output_config.effort,
        "thinking": request.thinking and request.thinking.model_dump(exclude={"display"}, exclude_none=True),
        "include_reasoning": False if request.thinking and request.thinking.display == "omitted" else None,
        "continue_final_message": request.ends_with_answer or None,
    }
    if isinstance(request, MessagesRequest):
        body |= {
            "max_completion_tokens": request.max_tokens,
            "stop": request.stop_sequences or None,
            "stream": request.stream,
            "stream_options": STREAM_OPTIONS if request.stream else None,
            **given_extras(request),
        }
    return given(body)


def chat_messages(request: CountTokensRequest) -> list[dict[str, Any]]:
    """The conversation: system, then messages. Messages of one role that follow each other are one."""
    turns = ChatTurns()
    if request.system is not None:
        turns.system([request.system] if isinstance(request.system, str) else [block.text for block in request.system])
    for turn in request.messages:
        _add(turns, turn)
    return turns.messages()


def _add(turns: ChatTurns, turn: Turn) -> None:
    blocks = turn.blocks
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    if turn.role == "system":
        turns.system(texts)
    elif turn.role == "assistant":
        turns.assistant(texts)
        for block in blocks:
            if isinstance(block, ThinkingBlock):
                turns.reasoning(block.thinking)
            elif isinstance(block, ToolUseBlock):
                turns.call(block.id, block.name, compact_json(block.input))
    else:
        for block in blocks or [TextBlock(type="text", text="")]:
            if isinstance(block, TextBlock):
                turns.user([block.text], joins=True)
            elif isinstance(block, ToolResultBlock):
                turns.tool(block.tool_use_id, _result_texts(block))


def _result_texts(block: ToolResultBlock) -> list[str]:
    """The text of a result. Chat has no mark for errors, so it begins with one."""
    content = block.content or ""
    texts = [content] if isinstance(content, str) else [part.text for part in content]
    return [ERROR_MARK + texts[0], *texts[1:]] if block.is_error else texts


def _tool(tool: CustomTool) -> dict[str, Any]:
    return chat_tool(tool.name, tool.input_schema, description=tool.description, strict=tool.strict)


def _choice(choice: ToolSelection) -> str | dict[str, Any]:
    return _CHOICES[choice.type] if choice.name is None else chosen_tool(choice.name)


def _response_format(config: OutputConfig) -> dict[str, Any] | None:
    return None if config.format is None else json_schema(config.format.content, "output")
