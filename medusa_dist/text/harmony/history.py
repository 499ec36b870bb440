"""Earlier answers of a conversation, as the chat template of gpt-oss takes them.

Owns where their reasoning goes. Not here: rendering (text/chat_template.py), reading answers (channel_reader.py).
"""

from collections.abc import Sequence
from typing import Any


def reasoning_in_channels(turns: Sequence[dict[str, Any]]) -> None:
    """Change turns in place: reasoning before a call becomes `thinking`, which the template puts into the analysis
    channel.

    A model that continues after a tool's result needs it; before a final answer it is dropped, as the format demands.
    The template takes either thinking or content beside a call and has one place for both, so a preamble follows the
    reasoning there.
    """
    for turn in turns:
        if not turn.get("reasoning_content") or not turn.get("tool_calls"):
            continue
        reasoning, preamble = turn.pop("reasoning_content"), turn.get("content")
        turn["thinking"] = f"{reasoning}\n\n{preamble}" if preamble else reasoning
        turn["content"] = ""
