"""Request body of POST /v1/batches, as a pydantic model.

Owns types and ranges. Not here: lines of an input file (storage/batch_lines.py).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.errors import RequestError
from medusa_dist.storage.batch_lines import URLS

MAX_PAIRS = 16
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
MetadataKey = Annotated[Text, Field(max_length=64)]
MetadataValue = Annotated[Text, Field(max_length=512)]


def window_s(text: str) -> int:
    """A completion window in seconds: 24h, as OpenAI has it, or other numbers of minutes, hours or days.

    Raises ValueError for anything else.
    """
    if not re.fullmatch(r"[1-9]\d{0,3}[mhd]", text):
        raise ValueError(f"must be a number of minutes, hours or days such as 24h, got {text[:100]!r}")
    return int(text[:-1]) * _SECONDS[text[-1]]


def _is_window(text: str) -> str:
    window_s(text)
    return text


class OutputExpiresAfter(Body):
    """When output files are deleted."""

    place = "output_expires_after."
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class BatchRequest(Body):
    """Body of POST /v1/batches."""

    input_file_id: Annotated[Text, Field(min_length=1)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Annotated[Text, AfterValidator(_is_window)] = Field(
        description="24h as in OpenAI's API, or another number of minutes (m), hours (h) or days (d)"
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_PAIRS)] | None = None
    output_expires_after: OutputExpiresAfter | None = None

    @field_validator("endpoint", mode="before")
    @classmethod
    def _is_served(cls, given: Any) -> Any:
        if isinstance(given, str) and given not in URLS:
            raise RequestError(
                f"endpoint {given[:100]!r} is not served in batches; use {', '.join(URLS)}", "endpoint", "invalid_value"
            )
        return given
