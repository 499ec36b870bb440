"""Response models: pydantic models for /openapi.json, and to validate responses in tests.

Owns no behaviour. Not here: building responses (api/response_builder.py makes plain dicts, one per decode step of a
stream).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medusa_dist.api.step_records import StepList

FinishReasonName = Literal["stop", "length"]


class ResponseModel(BaseModel):
    """Base of all responses: no fields beyond the documented ones."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(ResponseModel):
    """What went wrong, and in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(ResponseModel):
    """Every response with status 4xx or 5xx, and the last event of a stream that fails."""

    error: ErrorDetail


class PromptTokensDetails(ResponseModel):
    """Details of the prompt tokens."""

    cached_tokens: int


class Usage(ResponseModel):
    """Prompt and output tokens; rejected draft tokens are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class DrafterMetrics(ResponseModel):
    """Draft tokens that one drafter guessed, and those that were accepted."""

    num_draft_tokens: int
    num_accepted_draft_tokens: int


class SpeculationMetrics(ResponseModel):
    """Acceptance of draft tokens, for one request."""

    mean_acceptance_length: float = Field(description="tokens per step, including the bonus token")
    draft_acceptance_rate: float
    acceptance_histogram: list[int] = Field(description="[j]: steps that accepted exactly j draft tokens")
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int = Field(description="depth of the deepest draft token")
    drafters: dict[str, DrafterMetrics] = Field(
        description="by drafter; a token that several guessed counts for each, one that a grammar forced for none"
    )


class Metrics(ResponseModel):
    """Counts returned with the response."""

    speculative_decoding: SpeculationMetrics | None = Field(description="null if there is more than one choice")


class ScoredToken(ResponseModel):
    """A token and its log-probability under the base model, before temperature and filters."""

    token: str
    bytes: list[int]
    logprob: float


class ChatLogprob(ScoredToken):
    """One output position."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(ResponseModel):
    """One entry per output token."""

    content: list[ChatLogprob]
    refusal: None


StopReason = Annotated[
    int | str | None, Field(description="the stop string or stop token id that ended the output; as in vLLM")
]


class CalledFunction(ResponseModel):
    """What is called."""

    name: str
    arguments: str = Field(description="JSON that matches the tool's schema, unless it was cut by the token limit")


class ToolCall(ResponseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(ResponseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None = Field(description="null if the message consists of tool calls")
    refusal: None
    reasoning_content: str | None = Field(default=None, description="of a model that marks its reasoning")
    tool_calls: list[ToolCall] | None = None


class ChatChoice(ResponseModel):
    """One of n choices."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReasonName | Literal["tool_calls"]
    stop_reason: StopReason = None
    token_ids: list[int] | None = Field(default=None, description="with return_token_ids; the end token is the last")
    steps: StepList = None


class PromptLogprob(ResponseModel):
    """A token at one prompt position."""

    logprob: float
    rank: int | None = Field(description="1 is the most likely; null if not among the requested tokens")
    decoded_token: str


PromptLogprobList = Annotated[
    list[dict[str, PromptLogprob] | None],
    Field(description="if requested: for each prompt token, a table by token id; null for the first"),
]


class Head(ResponseModel):
    """Fields common to all generating routes."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int = Field(description="repeat the request with this seed to get the same output")
    acceptance: Literal["exact", "typical"] = Field(
        description="the acceptance rule for draft tokens; typical is lossy"
    )
    warnings: list[str] | None = Field(
        default=None, description="what of the request has no effect, such as reasoning_effort; absent: nothing"
    )
    usage: Usage
    metrics: Metrics


class ChatReply(Head):
    """Response of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobList | None = None
    prompt_token_ids: list[int] | None = Field(default=None, description="with return_token_ids")


class CompletionLogprobs(ResponseModel):
    """Parallel lists, one entry per token: with echo, prompt tokens first. null at the first prompt token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One choice; ordered by prompt, then by index within n."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReasonName
    stop_reason: StopReason = None
    prompt_logprobs: PromptLogprobList | None = None
    prompt_token_ids: list[int] | None = Field(default=None, description="with return_token_ids")
    token_ids: list[int] | None = Field(
        default=None, description="with return_token_ids, or without a tokenizer; the end token is the last"
    )
    steps: StepList = None


class CompletionReply(Head):
    """Response of POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelCard(BaseModel):
    """The served model; further fields depend on the service."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "medusa_dist"
    max_model_len: int


class ModelList(ResponseModel):
    """Response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(ResponseModel):
    """Response of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeReply(ResponseModel):
    """Response of POST /detokenize."""

    prompt: str


class VersionReply(ResponseModel):
    """Response of GET /version."""

    version: str


class LoadReply(ResponseModel):
    """Response of GET /load."""

    server_load: int = Field(description="requests that run or wait")
    running_sequences: int
    waiting_sequences: int
    kv_used_fraction: float
    output_tokens: int = Field(description="in total, since the ranks started")
    sequence_steps: int = Field(description="steps that chose output tokens, in total, summed over sequences")


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request is invalid; `param` names the field."},
    401: {"model": ErrorReply, "description": "The API key is missing or wrong."},
    404: {"model": ErrorReply, "description": "No such model or route."},
    413: {"model": ErrorReply, "description": "The body is larger than http.max_body_bytes."},
    415: {"model": ErrorReply, "description": "The body's Content-Encoding is not accepted."},
    429: {"model": ErrorReply, "description": "The queue is full; see Retry-After."},
    500: {"model": ErrorReply, "description": "A bug; the message contains the request id to search for in the log."},
    503: {"model": ErrorReply, "description": "The model is starting or restarting; see Retry-After."},
    "default": {"model": ErrorReply, "description": "Any other error."},  # replaces FastAPI's 422, which is never sent
}
