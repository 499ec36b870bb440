"""Content blocks of a Messages request, as pydantic models.

Owns their types, and which are refused. Not here: what they become in chat (to_chat.py).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medusa_dist.api.schema.fields import refuse_other_types
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.api.translation.unions import LIST, TEXT, TEXT_OR_LIST, tag_of, type_of
from medusa_dist.errors import RequestError

CACHING = Field(default=None, description="prefix caching is automatic")


class TextBlock(Body):
    """Text of a message or of a tool's result."""

    place = "messages[].content[]."
    field: ClassVar[str] = "messages"
    type: Literal["text"]
    text: Text
    cache_control: Any = CACHING
    citations: Any = Field(default=None, description="about the text, not part of it; no effect")

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        return refuse_other_types(data, ("text",), cls.place.rstrip("."), "send text blocks", cls.field)


class SystemBlock(TextBlock):
    """Text of the system prompt."""

    place = "system[]."
    field = "system"


class ResultBlock(TextBlock):
    """Text of a tool's result."""

    place = "messages[].content[].content[]."


class ThinkingBlock(Body):
    """The reasoning before an earlier answer; it reaches the chat template."""

    place = "messages[].content[]."
    type: Literal["thinking"]
    thinking: Text
    signature: Any = Field(default=None, description="not checked")


class ToolUseBlock(Body):
    """A tool call of an earlier answer."""

    place = "messages[].content[]."
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]
    cache_control: Any = CACHING
    caller: Any = Field(default=None, description="a label, no effect")
    toolset_name: None = Field(default=None, description="refused")


class ToolResultBlock(Body):
    """The result of a tool call. is_error: the text that the model sees begins with `Error: `."""

    place = "messages[].content[]."
    type: Literal["tool_result"]
    tool_use_id: Text
    content: Annotated[Annotated[Text, TEXT] | Annotated[list[ResultBlock], LIST], TEXT_OR_LIST] | None = None
    is_error: bool | None = None
    cache_control: Any = CACHING
    toolset_name: None = Field(default=None, description="refused")


def _kind(block: Any) -> str | None:
    """The tag of a block's model."""
    kind = type_of(block)
    if not isinstance(kind, str):
        return None
    if kind == "redacted_thinking":
        raise RequestError(
            "redacted_thinking blocks can be read by nobody but the service that wrote them; remove them", "messages"
        )
    return tag_of(kind, KINDS, "content blocks", "messages")


KINDS = ("text", "thinking", "tool_use", "tool_result")
Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")],
    Discriminator(_kind),
]
