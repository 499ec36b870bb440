"""CommonFields: the fields that all generating routes have, those of other APIs too.

Owns their types and ranges. Not here: fields of some routes (requests.py; api/messages/, api/responses/), their meaning
(sampling_params.py, request.py).
"""

from typing import Annotated, Literal

from pydantic import Field

from medusa_dist.api.conditions import names_match
from medusa_dist.api.schema.numbers import TokenIds, Whole, within
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.api.schema.structured_outputs import StructuredOutputs
from medusa_dist.request import MAX_PRIORITY
from medusa_dist.sampling_fields import MAX_BAD_WORDS

Stop = Annotated[Text, Field(min_length=1)]
_BIAS = Field(json_schema_extra=dict(names_match("^[0-9]{1,19}$")))
_NOT_ZERO = Field(ge=-1, le=2**31, json_schema_extra={"not": {"const": 0}})


class CommonFields(Body):
    """Base of the bodies of generating routes. null always means the default."""

    min_tokens: Annotated[Whole, within("min_tokens")] | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    top_k: Annotated[Whole, within("top_k", low=-1)] | None = None  # -1: all, as in vLLM
    min_p: Annotated[float, within("min_p")] | None = None
    frequency_penalty: Annotated[float, within("frequency_penalty")] | None = None
    presence_penalty: Annotated[float, within("presence_penalty")] | None = None
    repetition_penalty: Annotated[float, within("repetition_penalty")] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], _BIAS] | None = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    bad_words: Annotated[list[Stop], Field(max_length=MAX_BAD_WORDS)] | None = None
    seed: Annotated[Whole, within("seed")] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    truncate_prompt_tokens: Annotated[Whole, _NOT_ZERO] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Annotated[Whole, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[Text, Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    speculation: Literal["auto", "off"] | None = None
    acceptance: Literal["exact", "typical"] | None = None
    typical_epsilon: Annotated[float, within("typical_epsilon")] | None = None
    typical_delta: Annotated[float, within("typical_delta")] | None = None
    structured_outputs: StructuredOutputs | None = None
    explain: bool | None = None
