"""The shapes of Anthropic's Messages API, as recorded from the types of its client (anthropic 2.14).

Strict, so that a missing, unknown or mistyped field fails. The client itself is no dependency; tests/clients/ runs it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Text(Shape):
    type: Literal["text"]
    text: str


class Thinking(Shape):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUse(Shape):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Block = Annotated[Text | Thinking | ToolUse, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Usage(Shape):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class Message(Shape):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Usage
    # Not in Anthropic's.
    system_fingerprint: str
    seed: int
    acceptance: str
    metrics: Any = None


class MessageStart(Shape):
    type: Literal["message_start"]
    message: Message


class BlockStart(Shape):
    type: Literal["content_block_start"]
    index: int
    content_block: Block


class TextDelta(Shape):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Shape):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Shape):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(Shape):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Shape):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputDelta, Field(discriminator="type")]


class BlockStop(Shape):
    type: Literal["content_block_stop"]
    index: int


class Stop(Shape):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Shape):
    type: Literal["message_delta"]
    delta: Stop
    usage: Usage


class MessageStop(Shape):
    type: Literal["message_stop"]


class ErrorObject(Shape):
    type: str
    message: str


class Error(Shape):
    type: Literal["error"]
    error: ErrorObject
    request_id: str


Event = TypeAdapter(
    Annotated[
        MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Error,
        Field(discriminator="type"),
    ]
)

# Fields of MessageCreateParams and MessageCountTokensParams, without the beta ones.
CREATE_FIELDS = {
    *("max_tokens", "messages", "model", "cache_control", "container", "diagnostics", "inference_geo", "metadata"),
    *("output_config", "service_tier", "speed", "stop_sequences", "system", "thinking", "tool_choice", "tools"),
    *("user_profile_id", "workspace_id", "stream"),
}
COUNT_FIELDS = {
    *("messages", "model", "cache_control", "output_config", "speed", "system", "thinking", "tool_choice", "tools"),
    *("user_profile_id", "workspace_id"),
}


def accumulate(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The Message that a client has after these events."""
    message: dict[str, Any] = {}
    texts: dict[int, str] = {}
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = {**event["message"], "content": []}
        elif kind == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(dict(event["content_block"]))
            texts[event["index"]] = ""
        elif kind == "content_block_delta":
            delta, block = event["delta"], message["content"][event["index"]]
            if delta["type"] == "input_json_delta":
                texts[event["index"]] += delta["partial_json"]
            elif delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            else:
                name = block["type"]
                block[name] += delta[name]
        elif kind == "content_block_stop" and message["content"][event["index"]]["type"] == "tool_use":
            message["content"][event["index"]]["input"] = TypeAdapter(dict).validate_json(texts[event["index"]] or "{}")
        elif kind == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    return message


class Model(Shape):
    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active", "deprecated", "retired"]
    deprecated_at: str | None
    retires_at: str | None
    line: str | None
    capabilities: dict[str, Any] | None
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(Shape):
    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None
