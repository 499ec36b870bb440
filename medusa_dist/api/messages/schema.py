"""Request bodies of POST /v1/messages and /v1/messages/count_tokens, as pydantic models.

Owns types and ranges. Not here: which fields are honoured (fields.py), content blocks (blocks.py).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from medusa_dist.api.conditions import NULL, SET, TYPICAL, conditions, has, needs
from medusa_dist.api.messages.blocks import CACHING, Block, SystemBlock, TextBlock
from medusa_dist.api.messages.fields import COUNT_FIELDS, MESSAGES_FIELDS
from medusa_dist.api.schema.common_fields import Stop
from medusa_dist.api.schema.fields import Rule, document, refuse, refuse_other_types
from medusa_dist.api.schema.numbers import Whole, within
from medusa_dist.api.schema.requests import ThinkingOptions
from medusa_dist.api.schema.strict_model import Body, OnlyFalse, Text
from medusa_dist.api.translation.extra_fields import ExtraFields
from medusa_dist.api.translation.unions import LIST, TEXT, TEXT_OR_LIST
from medusa_dist.errors import RequestError
from medusa_dist.text.tools.thinking import Effort

_POSSIBLE = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "tool_use"),
    "system": ("text",),
}  # blocks, by role


class Turn(Body):
    """One message."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            {
                "anyOf": [
                    {
                        "properties": {
                            "role": {"const": role},
                            "content": {"items": {"properties": {"type": {"enum": [*kinds]}}}},
                        }
                    }
                    for role, kinds in _POSSIBLE.items()
                ]
            }
        )
    )
    place = "messages[]."
    role: Literal["user", "assistant", "system"]
    content: Annotated[Annotated[Text, TEXT] | Annotated[list[Block], LIST], TEXT_OR_LIST]

    @property
    def blocks(self) -> Sequence[Block]:
        """The content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class CustomTool(Body):
    """A tool that the caller runs."""

    place = "tools[]."
    type: Literal["custom"] | None = None
    name: Text
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(default=None, description="the schema is always enforced")
    cache_control: Any = CACHING
    eager_input_streaming: bool | None = Field(default=None, description="input is always streamed as it is made")
    defer_loading: OnlyFalse | None = Field(default=None, description="refused unless false")
    allowed_callers: list[Literal["direct"]] | None = Field(default=None, description="the model itself, and no other")
    input_examples: Annotated[list[Any], Field(max_length=0)] | None = Field(
        default=None, description="refused unless empty; put them into description"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_tools_only(cls, data: Any) -> Any:
        hint = "describe your own with name and input_schema"
        return refuse_other_types(data, ("custom",), "tools", hint, "tools")


class ToolSelection(Body):
    """Value of `tool_choice`."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            {
                "anyOf": [
                    has(type={"const": "tool"}, name=SET),
                    {"properties": {"type": {"enum": ["auto", "any", "none"]}, "name": NULL}},
                ]
            }
        )
    )
    place = "tool_choice."
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise RequestError(
                f'tool_choice.name and type "tool" require each other; the type is "{self.type}"', "tool_choice"
            )
        return self


class Thinking(ThinkingOptions):
    """Value of `thinking`."""

    display: Literal["summarized", "omitted"] | None = Field(
        default=None, description="thinking is returned whole, or not at all"
    )


class OutputFormat(Body):
    """A JSON schema of the output."""

    place = "output_config.format."
    type: Literal["json_schema"]
    content: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """Value of `output_config`."""

    place = "output_config."
    format: OutputFormat | None = None
    effort: Effort | None = Field(default=None, description="as reasoning_effort in chat completions")


class CountTokensRequest(Body):
    """Body of POST /v1/messages/count_tokens. null always means the default."""

    model_config = ConfigDict(json_schema_extra=document(COUNT_FIELDS))
    rules: ClassVar[Mapping[str, Rule]] = COUNT_FIELDS
    model: Text | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: Annotated[Annotated[Text, TEXT] | Annotated[list[SystemBlock], LIST], TEXT_OR_LIST] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: ToolSelection | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    speed: Any = None
    context_management: Any = None
    mcp_servers: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        refuse(self.rules, self.__dict__)
        for turn in self.messages:
            _check_blocks(turn)
        if self.ends_with_answer and any(block.type == "tool_use" for block in self.messages[-1].blocks):
            raise RequestError("messages: the last message has tool_use blocks, whose results must follow", "messages")
        return self

    @property
    def ends_with_answer(self) -> bool:
        """Whether the last message is the assistant's, which the model continues."""
        return self.messages[-1].role == "assistant"


class MessagesRequest(ExtraFields, CountTokensRequest):
    """Body of POST /v1/messages. null always means the default."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            TYPICAL, needs("truncation_side", truncate_prompt_tokens=SET), after=document(MESSAGES_FIELDS)
        )
    )
    rules = MESSAGES_FIELDS
    max_tokens: Annotated[Whole, within("max_tokens", low=1)]
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    metadata: Any = None
    service_tier: Any = None
    container: Any = None
    diagnostics: Any = None
    inference_geo: Any = None

    @model_validator(mode="after")
    def _room_after_thinking(self) -> Self:
        budget = None if self.thinking is None else self.thinking.budget_tokens
        if budget is not None and budget >= self.max_tokens:
            raise RequestError("thinking.budget_tokens must be lower than max_tokens", "thinking")
        return self


def _check_blocks(turn: Turn) -> None:
    """Raise RequestError for a block that a message of this role cannot have."""
    for block in turn.blocks:
        if block.type not in _POSSIBLE[turn.role]:
            raise RequestError(f"messages: a {turn.role} message cannot have a {block.type} block", "messages")
