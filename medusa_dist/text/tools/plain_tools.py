"""Tools for a chat template that has no place for them: as a system message, and as text in the history.

Owns that wording. Not here: templates with tools, which word it themselves (text/chat_template.py). The wording is that
of the Hermes models, which most models have seen. Source: NousResearch/Hermes-Function-Calling.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medusa_dist.text.tools.formats import ToolFormat

Message = Mapping[str, Any]


def without_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> list[Message]:
    """The same conversation in plain messages: a system message describes the tools, calls and results are texts."""
    turns = [_plain(message, form) for message in messages]
    if not tools:
        return turns
    described = describe_tools(tools, form)
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0]['content']}\n\n{described}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": described}, *turns]


def describe_tools(tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> str:
    """What a model must know to call tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = f"{form.opening}{form.begin}<function-name>{form.middle}<arguments>{form.end}{form.closing}"
    return (
        "You may call functions to answer the user. These are their signatures:\n"
        f"<tools>\n{listed}\n</tools>\n"
        f"To call a function, answer with its name and arguments in this form:\n{example}"
    )


def _plain(message: Message, form: ToolFormat) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = form.write([(call["function"]["name"], call["function"]["arguments"]) for call in calls])
    content = message.get("content")
    return {"role": message["role"], "content": f"{content}\n{written}" if content else written}
