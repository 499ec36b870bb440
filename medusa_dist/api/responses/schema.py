"""Request body of POST /v1/responses, as pydantic models.

Owns types and ranges. Not here: which fields are honoured (fields.py), items of the input (input_items.py).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from medusa_dist.api.conditions import SET, TRUE, TYPICAL, conditions, has, needs
from medusa_dist.api.responses.fields import RESPONSES_FIELDS
from medusa_dist.api.responses.input_items import InputItem
from medusa_dist.api.schema.common_fields import Stop
from medusa_dist.api.schema.fields import document, refuse
from medusa_dist.api.schema.numbers import Whole, within
from medusa_dist.api.schema.strict_model import Body, OnlyFalse, Text
from medusa_dist.api.schema.tools import only_functions
from medusa_dist.api.translation.extra_fields import ExtraFields
from medusa_dist.api.translation.unions import LIST, TEXT, TEXT_OR_LIST
from medusa_dist.errors import RequestError
from medusa_dist.text.tools.thinking import Effort

LOGPROBS = "message.output_text.logprobs"


class FlatFunction(Body):
    """A function that the model may call."""

    place = "tools[]."
    type: Literal["function"]
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="a JSON schema of an object; enforced")
    strict: bool | None = Field(default=None, description="the schema is always enforced")
    defer_loading: OnlyFalse | None = Field(default=None, description="refused unless false")
    is_async: OnlyFalse | None = Field(default=None, alias="async", description="refused unless false")
    allowed_callers: list[Literal["direct"]] | None = Field(default=None, description="the model itself, and no other")
    output_schema: None = Field(default=None, description="refused; describe the output in description")

    @model_validator(mode="before")
    @classmethod
    def _functions_only(cls, data: Any) -> Any:
        return only_functions(data, "tools")


class ChosenFunction(Body):
    """A function by its name."""

    place = "tool_choice."
    type: Literal["function"]
    name: Text


class AllowedFunctions(Body):
    """Some of the functions."""

    place = "tool_choice."
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Field(min_length=1)]


def _choice_kind(choice: Any) -> str:
    """The tag of a choice's model."""
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", choice)
    if isinstance(choice, dict) and kind not in ("function", "allowed_tools"):
        raise RequestError(
            f"tool_choice of type {str(kind)[:40]!r} is not supported; the types are function and allowed_tools",
            "tool_choice",
        )
    return f"[{kind}]" if kind in ("function", "allowed_tools") else "[mode]"


ToolChoiceMode = Literal["none", "auto", "required"]
FlatToolChoice = Annotated[
    Annotated[ToolChoiceMode, Tag("[mode]")]
    | Annotated[ChosenFunction, Tag("[function]")]
    | Annotated[AllowedFunctions, Tag("[allowed_tools]")],
    Discriminator(_choice_kind),
]


class TextFormat(Body):
    """The form of the text. name, description, strict: labels; the schema is always enforced."""

    place = "text.format."
    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    content: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.type == "json_schema") != (self.content is not None):
            raise RequestError(
                f'text.format.schema and type "json_schema" require each other; the type is "{self.type}"', "text"
            )
        return self


class TextOptions(Body):
    """Value of `text`."""

    place = "text."
    format: TextFormat | None = None
    verbosity: Text | None = Field(default=None, description="as in chat completions")


Summary = Literal["auto", "concise", "detailed"]


class ReasoningOptions(Body):
    """Value of `reasoning`."""

    place = "reasoning."
    effort: Effort | None = Field(default=None, description="as reasoning_effort in chat completions")
    summary: Summary | None = Field(default=None, description="reasoning is returned whole; no summary is made")
    generate_summary: Summary | None = Field(default=None, description="the older name of summary")
    context: Literal["auto"] | None = Field(default=None, description="the chat template decides")
    mode: Literal["standard"] | None = Field(default=None, description="there is only one mode")


class ResponsesStreamOptions(Body):
    """Value of `stream_options`."""

    place = "stream_options."
    include_obfuscation: OnlyFalse | None = Field(default=None, description="no padding is added to events")


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponsesRequest(ExtraFields):
    """Body of POST /v1/responses. null always means the default."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            TYPICAL,
            needs("truncation_side", truncate_prompt_tokens=SET),
            needs("stream_options", stream=TRUE),
            {
                "anyOf": [
                    {"properties": {"top_logprobs": {"enum": [None, 0]}}},
                    has(include={"type": "array", "contains": {"const": LOGPROBS}}),
                ]
            },
            after=document(RESPONSES_FIELDS),
        )
    )
    model: Text | None = None
    input: Annotated[Annotated[Text, TEXT] | Annotated[list[InputItem], Field(min_length=1), LIST], TEXT_OR_LIST]
    instructions: Text | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    max_output_tokens: Annotated[Whole, within("max_tokens", low=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    tools: list[FlatFunction] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[Whole, within("logprobs")] | None = None
    metadata: dict[str, Any] | None = None
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    service_tier: Any = None
    max_tool_calls: Any = None
    image: Any = None
    truncation: Any = None
    store: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    background_options: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    access_programs: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        refuse(RESPONSES_FIELDS, self.__dict__)
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise RequestError(f'top_logprobs requires include: ["{LOGPROBS}"]', "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options requires stream: true", "stream_options")
        return self

    def field(self, name: str) -> Any:
        """The value of a field as the client sent it; None if it did not."""
        return self.model_dump(include={name}, exclude_unset=True, by_alias=True).get(name)
