"""What is asked and what leaves: Request, SamplingParams, Output.

Owns the nouns at both ends of the engine. Not here: text (text/text_stream.py), the life of a request in the engine
(engine/state/sequence.py), which fields go with a beam search (sampling_fields.py). No torch.
"""

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from medusa_dist.errors import RequestError
from medusa_dist.sampling_params import SamplingParams

MAX_PRIORITY = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to continue. `seed` is always set: whoever makes the Request draws it if the user gave none.

    priority: lower numbers are served first and preempted last; equal ones first come, first served.
    cache_salt: prompts share prefixes in the cache only with prompts of the same salt (one per tenant, say).
    Both are named as in vLLM, and neither changes the output.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {self.priority!r}", "priority"
            )
        if self.cache_salt == "":
            raise RequestError("cache_salt must not be empty; leave it out to share prefixes with all", "cache_salt")


def choice_seed(seed: int, *path: int | str) -> int:
    """A 64-bit seed for choice i of n, or for a batch line: hash of the parent's seed and what names the child.

    Choice 0 keeps the parent's seed, so n = 1 and the first of n > 1 agree.
    """
    if path == (0,):
        return seed
    digest = hashlib.blake2b("/".join(map(str, (seed, *path))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def check_prompt(prompt_ids: Seq[int], max_model_len: int, vocab_size: int, max_tokens: int | None) -> None:
    """Refuse a prompt the model cannot take.

    Raises RequestError (param "prompt" or "max_tokens") for an empty prompt, an id outside the vocabulary, or a prompt
    that, together with max_tokens, exceeds the context.
    """
    if not prompt_ids:
        raise RequestError("the prompt is empty; give at least one token", "prompt")
    bad = next((t for t in prompt_ids if not 0 <= t < vocab_size), None)
    if bad is not None:
        raise RequestError(f"token id {bad} is outside the vocabulary of {vocab_size} tokens", "prompt")
    wanted = 1 if max_tokens is None else max_tokens
    if len(prompt_ids) + wanted > max_model_len:
        raise RequestError(
            f"this model's context is {max_model_len} tokens; the prompt has {len(prompt_ids)} and max_tokens asks for "
            f"{wanted} more; shorten the prompt or lower max_tokens",
            "prompt" if len(prompt_ids) >= max_model_len else "max_tokens",
            "context_length_exceeded",
        )
