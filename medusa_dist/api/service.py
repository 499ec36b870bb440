"""Service: the protocol between the HTTP routes and a served model.

Owns that protocol. Not here: implementations (serve/replica.py; a fake in the tests).
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.text.tools.chat_format import ChatFormat


@dataclass(frozen=True, slots=True)
class Health:
    """ok: the model decodes now. text: one readable line, with the cause if not ok."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica does now. Sequences that run, sequences that wait, and the share of the KV cache in use; then
    totals since its group started: output tokens, and the steps that chose them, summed over sequences."""

    num_running: int = 0
    num_waiting: int = 0
    kv_used_fraction: float = 0.0
    num_tokens: int = 0
    num_sequence_steps: int = 0


class Service(Protocol):
    """One served model.

    name: the value of `model` in requests. created: unix seconds. tokenizer: a transformers tokenizer, or
    NoTokenizer (text/no_tokenizer.py) for a model that is served as token ids alone.
    system_fingerprint: changes whenever the same seed may give different tokens (weights, dtype, noise version).
    sanitize_control_tokens: the config key.
    """

    @property
    def name(self) -> str:
        """Served model name."""

    @property
    def max_model_len(self) -> int:
        """Maximum length of prompt + output, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary; token ids are smaller."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the model, or NoTokenizer."""

    @property
    def sanitize_control_tokens(self) -> bool:
        """Whether control tokens in messages are plain text."""

    @property
    def requests_per_call(self) -> int:
        """Requests of one call that may be here at a time, at least 1; a call with more sends them as these end."""

    @property
    def chat_format(self) -> ChatFormat:
        """How the model writes tool calls and reasoning."""

    @property
    def system_fingerprint(self) -> str:
        """Reported in every response."""

    @property
    def created(self) -> int:
        """Start time of the service, unix seconds."""

    @property
    def default_sampling_params(self) -> Mapping[str, Any]:
        """The model's own values of sampling fields, for requests that leave them out; often empty."""

    def describe(self) -> Mapping[str, Any]:
        """More fields for /v1/models, as JSON values, such as {"speculation": "off: no heads for this model"}."""

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The Outputs of a request, in order, the last one with a finish_reason.

        Raises OverloadedError (before the first item only) or EngineError. Closing the generator early, or
        cancelling the task that awaits it, aborts the request.
        """

    async def abort(self, request_id: str) -> None:
        """Abort a request at any time; unknown and finished ids are ignored."""

    @property
    def num_requests(self) -> int:
        """Requests that run or wait, in this process."""

    def load(self) -> Load:
        """What the replica does, as of its last report. Does not block."""

    async def metrics(self) -> str:
        """The service's metrics in Prometheus' text format. Raises EngineError where there are none to be had."""

    def health(self) -> Health:
        """Whether the model decodes now. Does not block."""
