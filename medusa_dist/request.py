"""Request: one prompt to complete, its seed, and prompt checks.

Owns the engine's input. Not here: sampling fields (sampling_params.py), outputs (outputs.py), the state of a request
in the engine (engine/state/sequence.py). No torch.
"""

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from medusa_dist.errors import RequestError
from medusa_dist.sampling_params import SamplingParams

MAX_PRIORITY = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to complete, once. `seed` is always set; its creator draws one if the user gave none, and makes one
    Request per output where params.n asked for several.

    priority: lower numbers are scheduled first and preempted last; ties are first come, first served.
    cache_salt: prompts share prefixes in the cache only with prompts of the same salt (for example one per tenant).
    Both are named as in vLLM, and neither changes the output.
    explain: outputs have a record of each step (Output.steps).
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int = 0
    cache_salt: str | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if self.params.n != 1 and self.params.beam_width is None:
            raise RequestError("n: a Request is one output; make one per output, with choice_seed", "n")
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {self.priority!r}", "priority"
            )
        if self.explain and self.params.beam_width is not None:
            raise RequestError(
                "explain cannot be used with beam_width: a step of a search belongs to no single output; remove it",
                "explain",
            )
        if self.cache_salt == "":
            raise RequestError(
                "cache_salt must not be empty; remove it to share prefixes with all requests", "cache_salt"
            )


def choice_seed(seed: int, *path: int | str) -> int:
    """A 64-bit seed for choice i of n, or for a batch line: a hash of the parent seed and the child's path.

    Choice 0 keeps the parent seed, so n = 1 and the first choice of n > 1 agree.
    """
    if path == (0,):
        return seed
    digest = hashlib.blake2b("/".join(map(str, (seed, *path))).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def check_prompt(prompt_ids: Seq[int], max_model_len: int, vocab_size: int, max_tokens: int | None) -> None:
    """Validate a prompt.

    Raises RequestError (param "prompt" or "max_tokens") for an empty prompt, an id outside the vocabulary, or a prompt
    that, together with max_tokens, exceeds the context.
    """
    if not prompt_ids:
        raise RequestError("the prompt is empty; send at least one token", "prompt")
    bad = next((t for t in prompt_ids if not 0 <= t < vocab_size), None)
    if bad is not None:
        raise RequestError(f"token id {bad} is outside the vocabulary of {vocab_size} tokens", "prompt")
    wanted = 1 if max_tokens is None else max_tokens
    if len(prompt_ids) + wanted > max_model_len:
        raise RequestError(
            # OpenAI's and vLLM's words: clients look for them to know this error from others.
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{len(prompt_ids) + wanted} tokens ({len(prompt_ids)} in the prompt, {wanted} in the completion); "
            "shorten the prompt or lower max_tokens",
            "prompt" if len(prompt_ids) >= max_model_len else "max_tokens",
            "context_length_exceeded",
        )
