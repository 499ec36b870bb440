"""Request bodies of the POST routes, as pydantic models.

Owns types and ranges of request fields. Not here: fields that other APIs share (common_fields.py), which fields are
honoured (fields.py), messages (messages.py), their meaning (api/convert.py), response bodies (responses.py).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from medusa_dist.api.beams import asked_beams
from medusa_dist.api.conditions import NULL, SET, TRUE, TYPICAL, absent, conditions, exactly_one, has, needs
from medusa_dist.api.schema.common_fields import CommonFields, Stop
from medusa_dist.api.schema.fields import CHAT_FIELDS, COMPLETION_FIELDS, Rule, document, refuse
from medusa_dist.api.schema.messages import ChatMessage
from medusa_dist.api.schema.numbers import Whole, wholes, within
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.api.schema.structured_outputs import ResponseFormat
from medusa_dist.api.schema.tools import MAX_TOOLS, Tool, ToolChoice
from medusa_dist.api.schema.unserved import Unserved, UnservedInChat
from medusa_dist.errors import RequestError
from medusa_dist.text.tools.thinking import Effort

_NOT_TRUE, _NOT_FALSE = {"enum": [None, False]}, {"enum": [None, True]}
# Between fields of both generating routes.
_SAMPLED = (
    {  # one condition instead of two: generators of test data give up on many
        "anyOf": [
            {**has(stream=TRUE), "allOf": [absent("prompt_logprobs")]},
            {"properties": {"stream": _NOT_TRUE, "stream_options": NULL}},
        ]
    },
    needs("truncation_side", truncate_prompt_tokens=SET),
    TYPICAL,
)


class StreamOptions(Body):
    """Options of a streaming response."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            {
                "anyOf": [
                    {"properties": {"continuous_usage_stats": _NOT_TRUE}},
                    {"properties": {"include_usage": _NOT_FALSE}},
                ]
            },
            {"properties": {"include_obfuscation": _NOT_TRUE}},
        )
    )
    place = "stream_options."
    include_usage: bool | None = Field(default=None, description="adds a chunk with the usage before [DONE]")
    continuous_usage_stats: bool | None = Field(
        default=None, description="adds the usage so far to each chunk; include_usage is then true unless set to false"
    )
    include_obfuscation: bool | None = Field(default=None, description="true is refused: no padding is added")

    @property
    def usage_at_end(self) -> bool:
        """Whether a chunk with the usage comes before [DONE]."""
        return bool(self.continuous_usage_stats if self.include_usage is None else self.include_usage)

    @model_validator(mode="after")
    def _no_obfuscation(self) -> Self:
        if self.continuous_usage_stats and self.include_usage is False:
            raise RequestError(
                "stream_options.continuous_usage_stats requires include_usage, which is false; remove one of them",
                "stream_options",
            )
        if self.include_obfuscation:
            raise RequestError(
                "stream_options.include_obfuscation is not supported: no padding is added to chunks; remove it",
                "stream_options",
                "unsupported_parameter",
            )
        return self


class ThinkingOptions(Body):
    """Value of `thinking`, as in the APIs of DeepSeek, Z.ai and Anthropic."""

    place = "thinking."
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="a wish, for chat templates that read thinking_budget; not enforced"
    )


class Sampled(CommonFields, Unserved):
    """Fields of both generating routes. null always means the default."""

    rules: ClassVar[Mapping[str, Rule]] = {}
    model: Text | None = None
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Whole, within("max_tokens", low=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    prompt_logprobs: Annotated[Whole, within("prompt_logprobs")] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    beam_width: Annotated[Whole, within("beam_width")] | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, within("length_penalty")] | None = None
    early_stopping: bool | Literal["never"] | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = None

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        refuse(self.rules, self.__dict__)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options requires stream: true", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs is not available with stream; remove stream", "prompt_logprobs")
        if self.truncate_prompt_tokens == 0:
            raise RequestError(
                "truncate_prompt_tokens: 0 leaves no prompt; send at least 1, or -1 for what fits",
                "truncate_prompt_tokens",
            )
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise RequestError("truncation_side requires truncate_prompt_tokens", "truncation_side")
        asked_beams(self)
        return self


# The prompt ends inside the last message, or with the cue of a new one.
_ONE_END = {
    "anyOf": [{"properties": {name: _NOT_TRUE}} for name in ("continue_final_message", "add_generation_prompt")]
}


class ChatRequest(Sampled, UnservedInChat):
    """Body of POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            *_SAMPLED,
            {"anyOf": [{"properties": {"top_logprobs": {"enum": [None, 0]}}}, has(logprobs=TRUE)]},
            _ONE_END,
            after=document(CHAT_FIELDS),
        )
    )
    rules = CHAT_FIELDS
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, within("max_tokens", low=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, within("logprobs")] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking: ThinkingOptions | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs requires logprobs: true", "top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise RequestError(
                "max_tokens and max_completion_tokens are two names of one limit; set one, or both to the same value",
                "max_tokens",
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other; remove add_generation_prompt",
                "continue_final_message",
            )
        return self


class CompletionRequest(Sampled):
    """Body of POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            *_SAMPLED,
            {
                "anyOf": [
                    {"properties": {"max_tokens": {"not": {"const": 0}}}},
                    has(echo=TRUE),
                    has(prompt_logprobs=SET),
                ]
            },
            after=document(COMPLETION_FIELDS),
        )
    )
    rules = COMPLETION_FIELDS
    prompt: Annotated[Text | list[Text] | list[int] | list[list[int]], wholes]
    max_tokens: Annotated[Whole, within("max_tokens")] | None = None
    logprobs: Annotated[Whole, within("logprobs")] | None = None
    echo: bool | None = None
    parse_special: bool | None = None
    best_of: Any = None
    suffix: Any = None
    prompt_embeds: Any = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise RequestError("max_tokens: 0 requires echo or prompt_logprobs", "max_tokens")
        return self


class TokenizeRequest(Body):
    """Body of POST /tokenize: a prompt, or messages for the chat template."""

    model_config = ConfigDict(json_schema_extra=conditions(exactly_one("prompt", "messages"), _ONE_END))

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="null: true for a prompt, false for messages, whose chat template adds its own"
    )
    parse_special: bool = Field(
        default=True, description="applies to prompt; false: control tokens in it are plain text"
    )
    add_generation_prompt: bool | None = Field(default=None, description="applies to messages; null: true")
    continue_final_message: bool = Field(default=False, description="applies to messages, as in chat")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="applies to messages, as in chat")
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = Field(
        default=None, description="applies to messages, as in chat"
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("prompt or messages is required, and not both", "prompt")
        return self


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: Text | None = None
    tokens: list[int]
