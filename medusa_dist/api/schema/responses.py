"""Bodies of the answers, as pydantic models: what /openapi.json documents and the tests hold answers against.

Owns no behaviour: answers.py builds plain dicts, since a stream makes one per decode step.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReasonName = Literal["stop", "length"]


class ResponseModel(BaseModel):
    """Base of all answers: no field beyond the documented ones."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(ResponseModel):
    """What went wrong, and where."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(ResponseModel):
    """Every answer with status 4xx or 5xx, and the last event of a stream that breaks."""

    error: ErrorDetail


class PromptTokensDetails(ResponseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(ResponseModel):
    """Tokens read and written; what was drafted and rejected is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class SpeculationMetrics(ResponseModel):
    """How well drafting went, for one request."""

    mean_acceptance_length: float = Field(description="tokens per step, the base model's own included")
    draft_acceptance_rate: float
    acceptance_histogram: list[int] = Field(description="[j]: steps that accepted exactly j drafted tokens")
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int = Field(description="deepest drafted position")


class Metrics(ResponseModel):
    """Counts beside the answer."""

    speculative_decoding: SpeculationMetrics | None = Field(description="null for more than one choice")


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


class AssistantMessage(ResponseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ResponseModel):
    """One of n answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReasonName


class PromptLogprob(ResponseModel):
    """A token at a place of the prompt."""

    logprob: float
    rank: int | None = Field(description="1 is the likeliest; null below the ones asked for")
    decoded_token: str


PromptLogprobList = Annotated[
    list[dict[str, PromptLogprob] | None],
    Field(description="if asked for: per prompt token a table by token id; null for the first"),
]


class Head(ResponseModel):
    """What all generating routes answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int = Field(description="repeat the request with it to get the same answer")
    acceptance: Literal["exact", "typical"] = Field(description="how drafts were accepted; typical is lossy")
    usage: Usage
    metrics: Metrics


class ChatReply(Head):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobList | None = None


class CompletionLogprobs(ResponseModel):
    """TPGroup lists, one entry per token: with echo the prompt's, then the output's. null at the first of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One choice; prompts outside, n inside."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReasonName
    prompt_logprobs: PromptLogprobList | None = None


class CompletionReply(Head):
    """Answer of POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelCard(BaseModel):
    """The served model; further facts depend on the service."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "medusa_dist"
    max_model_len: int


class ModelList(ResponseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(ResponseModel):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request is at fault; `param` names the field."},
    401: {"model": ErrorReply, "description": "The API key is missing or wrong."},
    404: {"model": ErrorReply, "description": "No such model or route."},
    429: {"model": ErrorReply, "description": "The queue is full; see Retry-After."},
    500: {"model": ErrorReply, "description": "A bug; the message names the request id to look for in the log."},
    503: {"model": ErrorReply, "description": "The model is starting or restarting; see Retry-After."},
    "default": {"model": ErrorReply, "description": "Any other error."},  # replaces FastAPI's 422, which we never send
}
