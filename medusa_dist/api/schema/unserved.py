"""Fields that are known and have no effect or are refused: of any type, because the table of fields decides.

Owns their names. Not here: their rules (fields.py), fields with an effect (requests.py).
"""

from typing import Any

from medusa_dist.api.schema.strict_model import Body


class Unserved(Body):
    """Those of both generating routes."""

    user: Any = None
    request_id: Any = None
    session_id: Any = None
    logits_processors: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    vllm_xargs: Any = None
    logprob_token_ids: Any = None
    thinking_token_budget: Any = None
    repetition_detection: Any = None
    stream_interval: Any = None
    watermarking: Any = None
    routed_experts_prompt_start: Any = None
    return_token_offsets: Any = None
    return_mm_kwargs: Any = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None


class UnservedInChat(Unserved):
    """Those of chat."""

    metadata: Any = None
    store: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    moderation: Any = None
    chat_template: Any = None
    echo: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None
    return_prompt_text: Any = None
