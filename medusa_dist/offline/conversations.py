"""Conversations of `LLM.chat`: their tools, and the messages that their outputs are read as.

Owns what Python adds to the answering of a chat call. Not here: that itself (api/chat/), formats, grammars and readers
(text/tools/), the forms of messages (prompts.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medusa_dist.api.chat.answering import Answering, form_of
from medusa_dist.api.schema.tools import Tool, ToolChoice, asked_tools
from medusa_dist.errors import RequestError
from medusa_dist.outputs import Output
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.text_stream import TextDelta, TextStream
from medusa_dist.text.tools.chat_format import ChatFormat

Tools = Sequence[Mapping[str, Any]] | None
_TOOLS: TypeAdapter[list[Tool]] = TypeAdapter(list[Tool])
_CHOICE: TypeAdapter[ToolChoice] = TypeAdapter(ToolChoice)


class ChatStream(TextStream):
    """The text of one output of a chat, and the message that it is.

    text: as the model wrote it, reasoning and calls included, without special tokens, as in vLLM. message: of role
    assistant, in OpenAI's form, which can be appended to the conversation.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams, plan: Answering, prompt: str) -> None:
        super().__init__(tokenizer, params)
        self._marked = TextStream(tokenizer, params, (), plan.shown_ids(tokenizer))  # with the marks of calls
        self._builder = plan.message(prompt)

    @property
    def message(self) -> dict[str, Any]:
        """The message so far."""
        return self._builder.message()

    def push(self, output: Output) -> TextDelta:
        """Process one Output."""
        delta, marked = super().push(output), self._marked.push(output)
        self._builder.push(marked.text, is_last=delta.finish_reason is not None)
        return delta


@dataclass(frozen=True, slots=True)
class PlannedChat:
    """How one conversation is answered. prompt: as rendered."""

    plan: Answering
    prompt: str

    def stream(self, tokenizer: Any, params: SamplingParams) -> ChatStream:
        """The stream of one output."""
        return ChatStream(tokenizer, params, self.plan, self.prompt)


def chat_plan(
    tools: Tools,
    tool_choice: str | Mapping[str, Any] | None,
    parallel_tool_calls: bool | None,
    chat_format: ChatFormat,
) -> Answering:
    """How the conversations of a call are answered. Raises RequestError, naming the argument."""
    given = None if tools is None else _valid(_TOOLS, [_plain(tool) for tool in tools], "tools")
    choice = None if tool_choice is None else _valid(_CHOICE, _plain(tool_choice), "tool_choice")
    asked = asked_tools(given, choice, parallel_tool_calls)
    return Answering(asked, form_of(asked, chat_format), chat_format)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _valid(adapter: TypeAdapter[Any], value: Any, name: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise invalid(error, name) from None


def invalid(error: ValidationError, name: str) -> RequestError:
    """A validation error about an argument as a RequestError that names the place in it."""
    first = error.errors()[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return RequestError(f"{name}{path}: {first['msg']}", name)
