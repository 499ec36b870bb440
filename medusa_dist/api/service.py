"""What the routes need from whoever serves them.

Owns the Protocol between HTTP and the service. Not here: how it is done (the Ray front in serve/; a fake in the tests).
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from medusa_dist.outputs import Output
from medusa_dist.request import Request


@dataclass(frozen=True, slots=True)
class Health:
    """ok: the model decodes, right now. text: one line for a person, with the cause if not ok."""

    ok: bool
    text: str


class Service(Protocol):
    """One served model.

    name: what clients put in `model`. created: unix seconds. tokenizer: a transformers tokenizer.
    system_fingerprint: changes when the same seed may give other tokens (weights, dtype, noise version).
    """

    @property
    def name(self) -> str:
        """Served model name."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt + output, tokens."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the model."""

    @property
    def system_fingerprint(self) -> str:
        """Reported in every answer."""

    @property
    def created(self) -> int:
        """When the service came up, unix seconds."""

    def describe(self) -> Mapping[str, Any]:
        """Further facts for /v1/models, as JSON values: for example {"speculation": "off: no heads for this model"}."""

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The Outputs of a request, in order, the last one with a finish_reason.

        Raises OverloadedError or EngineError, usually before the first item. Closing the generator early, or
        cancelling the task that waits in it, aborts the request.
        """

    async def abort(self, request_id: str) -> None:
        """Forget a request, at any time; unknown and finished ids are ignored."""

    def health(self) -> Health:
        """Whether the model decodes now. Must not block."""
