"""ChatFormat: how the served model writes tool calls and reasoning, by its chat template and the config.

Owns that choice. Not here: the formats (formats.py, reasoning.py), rendering (text/chat_template.py).
"""

from dataclasses import dataclass, field
from typing import Any

from medusa_dist.errors import ConfigError, RequestError
from medusa_dist.text.chat_template import Messages, render_chat
from medusa_dist.text.harmony.channel_reader import MARKS, is_harmony
from medusa_dist.text.template_variables import variables_of
from medusa_dist.text.tools.formats import FORMATS, ToolFormat, implied_format
from medusa_dist.text.tools.reasoning import REASONING, ReasoningMarks, implied_reasoning
from medusa_dist.text.tools.template_reader import ResponseTemplate, response_template
from medusa_dist.text.tools.thinking import ThinkingVariables, thinking_variables
from medusa_dist.text.tools.tool_grammar import token_marks

AUTO, NONE, HARMONY = "auto", "none", "harmony"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """form: of calls; None: unknown or off. marks: of the reasoning; None: the model does not reason, or off.

    renders_tools: the chat template has a place for tools; without it they are described in a system message.
    thinking: what the chat template reads about thinking. template: the tokenizer's own description of answers.
    text_arguments: the chat template takes the arguments of calls as JSON text, where most take an object.
    has_channels: answers are messages in channels (text/harmony/), in place of form and marks.
    """

    form: ToolFormat | None = None
    marks: ReasoningMarks | None = None
    renders_tools: bool = False
    thinking: ThinkingVariables = field(default_factory=ThinkingVariables)
    template: ResponseTemplate | None = None
    text_arguments: bool = False
    has_channels: bool = False

    def read_by_template(self, has_tools: bool) -> ResponseTemplate | None:
        """What reads an answer, where no format of ours does. has_tools: the request has tools."""
        template = None if self.has_channels else self.template
        if template is None:
            return None
        if has_tools:
            return template if self.form is None and self.renders_tools and template.has_calls else None
        return template if self.marks is None and template.has_reasoning else None

    @property
    def name(self) -> str | None:
        """Of the format of calls, for the facts of a service; None: requests with tools are refused."""
        if self.has_channels:
            return HARMONY
        if self.form is None:
            return None if self.read_by_template(has_tools=True) is None else "response_template"
        return self.form.name

    @property
    def reasons(self) -> bool:
        """Whether reasoning is told from content."""
        return self.has_channels or self.marks is not None or self.read_by_template(has_tools=False) is not None

    def tool_format(self) -> ToolFormat:
        """The format for a request with tools. Raises RequestError where there is none."""
        if self.form is None:
            known = ", ".join(FORMATS)
            raise RequestError(
                "tools: this model's chat template has no tool format that is known; the config key tool_format can "
                f"name one ({known})",
                "tools",
            )
        return self.form


def chat_format(
    tokenizer: Any, tool_format: str, reasoning_format: str, chat_template: str | None = None
) -> ChatFormat:
    """The format of a model. tool_format, reasoning_format: the config keys, which are names of the tables.

    chat_template: in place of the model's own. Raises ConfigError where harmony is named and cannot be read.
    """
    found = chat_template or getattr(tokenizer, "chat_template", None) or ""
    templates = list(found.values()) if isinstance(found, dict) else [found]
    whole = "\n".join(templates)
    renders_tools = any("tools" in variables_of(template) for template in templates)
    if tool_format == HARMONY:
        _check_harmony(tokenizer, renders_tools, reasoning_format)
    if tool_format == HARMONY or (
        tool_format == reasoning_format == AUTO and renders_tools and is_harmony(whole, token_marks(tokenizer))
    ):
        return ChatFormat(renders_tools=True, thinking=thinking_variables(templates), has_channels=True)
    if tool_format == AUTO:
        form = implied_format(whole) if renders_tools else None
    else:
        form = None if tool_format == NONE else FORMATS[tool_format]
    template = response_template(tokenizer) if tool_format == reasoning_format == AUTO else None
    if reasoning_format == AUTO:
        marks = implied_reasoning(whole)
    else:
        marks = None if reasoning_format == NONE else REASONING[reasoning_format]
    as_text = renders_tools and _takes_text_arguments(tokenizer, chat_template)
    return ChatFormat(form, marks, renders_tools, thinking_variables(templates), template, as_text)


def _check_harmony(tokenizer: Any, renders_tools: bool, reasoning_format: str) -> None:
    missing = [mark for mark in MARKS if mark not in token_marks(tokenizer)]
    if missing:
        raise ConfigError(f"tool_format: harmony needs the token {missing[0]}, which this model's tokenizer lacks")
    if not renders_tools:
        raise ConfigError("tool_format: harmony needs a chat template with tools; give one with chat_template")
    if reasoning_format != AUTO:
        raise ConfigError("reasoning_format: harmony has its reasoning in a channel; leave the key at auto")


def _takes_text_arguments(tokenizer: Any, chat_template: str | None) -> bool:
    """Whether a call comes out right with arguments as text only, as in DeepSeek's templates: found by rendering."""

    def rendered(arguments: Any) -> str:
        call = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        turns: Messages = [{"role": "user", "content": "a"}, answer]
        try:
            return render_chat(tokenizer, turns, chat_template=chat_template)
        except RequestError:
            return ""

    of_object = rendered({"key": "value"})
    is_right = "value" in of_object and "'key': 'value'" not in of_object  # which is how Python writes it
    return not is_right and '{"key": "value"}' in rendered('{"key": "value"}')
