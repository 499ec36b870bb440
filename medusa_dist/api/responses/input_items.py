"""Items of a Responses request's input, as pydantic models.

Owns their types, and which are refused. Not here: what they become in chat (to_chat.py).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from medusa_dist.api.conditions import conditions, has
from medusa_dist.api.schema.fields import refuse_other_types
from medusa_dist.api.schema.strict_model import Body, OnlyFalse, Text
from medusa_dist.api.translation.unions import LIST, TEXT, TEXT_OR_LIST, tag_of, type_of
from medusa_dist.errors import RequestError

LABEL = Field(default=None, description="a label, no effect")


class _Part(Body):
    """A part of the content of an item."""

    place = "input[].content[]."

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        known = ("input_text", "output_text")
        return refuse_other_types(data, known, "content parts of input", "send input_text or output_text", "input")


class InputText(_Part):
    """Text of a message, or of a tool's result."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Any = Field(default=None, description="about the text, not part of it; no effect")
    logprobs: Any = LABEL
    prompt_cache_breakpoint: Any = Field(default=None, description="prefix caching is automatic")


Texts = Annotated[Annotated[Text, TEXT] | Annotated[list[InputText], LIST], TEXT_OR_LIST]


class MessageItem(Body):
    """A message."""

    place = "input[]."
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Texts
    id: Any = LABEL
    status: Any = LABEL
    phase: Any = LABEL


class FunctionCallItem(Body):
    """A tool call of an earlier answer."""

    place = "input[]."
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text
    id: Any = LABEL
    status: Any = LABEL
    caller: Any = LABEL
    namespace: None = Field(default=None, description="refused")
    is_async: OnlyFalse | None = Field(default=None, alias="async", description="refused unless false")


class FunctionOutputItem(Body):
    """The result of a tool call."""

    place = "input[]."
    type: Literal["function_call_output"]
    call_id: Text
    output: Texts
    id: Any = LABEL
    status: Any = LABEL
    caller: Any = LABEL
    name: Any = LABEL
    namespace: None = Field(default=None, description="refused")


class ReasoningText(Body):
    """Text of a reasoning item."""

    place = "input[].content[]."
    type: Literal["reasoning_text", "summary_text"]
    text: Text


class ReasoningItem(Body):
    """The reasoning before an earlier answer; its content, or else its summary, reaches the chat template."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            {
                "anyOf": [
                    {"properties": {"encrypted_content": {"enum": [None, ""]}}},
                    has(content={"type": "array", "minItems": 1}),
                    has(summary={"type": "array", "minItems": 1}),
                ]
            }
        )
    )
    place = "input[]."
    type: Literal["reasoning"]
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: Any = Field(default=None, description="refused where the item has no other content")
    id: Any = LABEL
    status: Any = LABEL

    @model_validator(mode="after")
    def _readable(self) -> "ReasoningItem":
        if self.encrypted_content and not self.content and not self.summary:
            raise RequestError(
                "input has a reasoning item with nothing but encrypted_content, which only the service that wrote it "
                "can read; remove the item",
                "input",
            )
        return self


def _kind(item: Any) -> str | None:
    """The tag of an item's model. An item without type is a message."""
    kind = type_of(item)
    if kind is None and not isinstance(item, dict):
        return None
    if kind is None and ("role" in item or "content" in item):
        kind = "message"
    if kind == "item_reference":
        raise RequestError("input has an item_reference: responses are not kept here; send the item itself", "input")
    return tag_of(kind, KINDS, "input items", "input")


KINDS = ("message", "reasoning", "function_call", "function_call_output")
InputItem = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")]
    | Annotated[FunctionCallItem, Tag("[function_call]")]
    | Annotated[FunctionOutputItem, Tag("[function_call_output]")],
    Discriminator(_kind),
]
