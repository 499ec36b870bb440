"""Limits: what an engine can serve in one step and for one request.

Owns the rejection of requests that could never run. Not here: when a request runs (scheduler/scheduler.py), the limits
of beam search (beam/group.py).
"""

from dataclasses import dataclass

from medusa_dist.engine.state.block_pool import blocks_for
from medusa_dist.errors import RequestError
from medusa_dist.request import Request, check_prompt


@dataclass(frozen=True)
class Limits:
    """What the scheduler must stay within, in tokens and sequences. eos_ids end a sequence unless it ignores them.

    graph_buckets: numbers of rows for which all ranks captured steps, ascending.
    """

    max_running: int
    max_batched_tokens: int
    max_model_len: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    graph_buckets: tuple[int, ...] = ()


def check_request(request: Request, limits: Limits, num_blocks: int) -> None:
    """Raise RequestError, naming the field, if a cache of num_blocks blocks can never serve the request."""
    params = request.params
    check_prompt(request.prompt_ids, limits.max_model_len, limits.vocab_size, params.max_tokens)
    if any(isinstance(word, str) for word in params.bad_words):
        raise RequestError("bad_words: texts need a tokenizer, which this engine lacks; give token ids", "bad_words")
    named = {
        "logit_bias": [i for i, _ in params.logit_bias],
        "stop_token_ids": params.stop_token_ids,
        "allowed_token_ids": params.allowed_token_ids or (),
        "bad_words": [int(i) for ids in params.bad_words for i in ids],
    }
    for name, ids in named.items():
        bad = next((i for i in ids if not 0 <= i < limits.vocab_size), None)
        if bad is not None:
            raise RequestError(f"{name} names token {bad}, the vocabulary has {limits.vocab_size}", name)
    longest = limits.max_model_len
    if params.max_tokens is not None:
        longest = min(longest, len(request.prompt_ids) + params.max_tokens)
    if blocks_for(longest) > num_blocks:
        raise RequestError(
            f"prompt and max_tokens need {blocks_for(longest)} KV blocks, the cache has {num_blocks}; "
            "lower max_tokens, or raise kv_cache_tokens of the service",
            "max_tokens",
        )
