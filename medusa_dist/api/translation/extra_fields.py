"""ExtraFields: fields of chat requests that other APIs do not have and that are honoured there, too.

Owns their list. Not here: their meaning (sampling_params.py, request.py).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from medusa_dist.api.schema.fields import CHAT_FIELDS, Rule
from medusa_dist.api.schema.numbers import TokenIds, Whole, within
from medusa_dist.api.schema.requests import Stop
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.api.schema.structured_outputs import StructuredOutputs
from medusa_dist.request import MAX_PRIORITY
from medusa_dist.sampling_fields import MAX_BAD_WORDS


class ExtraFields(Body):
    """Base of request models that are translated to a chat request. Types as in the chat request."""

    seed: Annotated[Whole, within("seed")] | None = None
    min_tokens: Annotated[Whole, within("min_tokens")] | None = None
    min_p: Annotated[float, within("min_p")] | None = None
    frequency_penalty: Annotated[float, within("frequency_penalty")] | None = None
    presence_penalty: Annotated[float, within("presence_penalty")] | None = None
    repetition_penalty: Annotated[float, within("repetition_penalty")] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    bad_words: Annotated[list[Stop], Field(max_length=MAX_BAD_WORDS)] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1, le=2**31)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Annotated[Whole, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[Text, Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    speculation: Literal["auto", "off"] | None = None
    acceptance: Literal["exact", "typical"] | None = None
    typical_epsilon: Annotated[float, within("typical_epsilon")] | None = None
    typical_delta: Annotated[float, within("typical_delta")] | None = None
    structured_outputs: StructuredOutputs | None = None


EXTRA_FIELDS: Mapping[str, Rule] = {name: CHAT_FIELDS[name] for name in ExtraFields.model_fields}


def given_extras(body: ExtraFields) -> dict[str, Any]:
    """The extra fields that a request has, for the body of a chat request."""
    values = body.model_dump(include=set(EXTRA_FIELDS), exclude_none=True, by_alias=True)
    return {name: values[name] for name in EXTRA_FIELDS if name in values}
