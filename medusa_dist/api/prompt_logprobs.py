"""Prompt logprobs in two formats: OpenAI's lists for echo, vLLM's `prompt_logprobs`.

Owns both formats and how they name a token. Not here: log-probabilities of output tokens (response_builder.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from medusa_dist.outputs import TokenLogprobs
from medusa_dist.text.detokenizer import Detokenizer
from medusa_dist.text.token_text import UNFINISHED, token_text

LOWEST_LOGPROB = -9999.0  # JSON has no infinity

Entries = Sequence[TokenLogprobs | None]  # one per prompt token; None for the first, which has no context


def token_name(token_id: int) -> str:
    """A token by its id, as return_tokens_as_token_ids asks for."""
    return f"token_id:{token_id}"


def token_key(tokenizer: Any, token_id: int, names_ids: bool = False) -> str:
    """A token as a dictionary key. Partial characters are written as bytes, as OpenAI does, so that keys differ."""
    if names_ids:
        return token_name(token_id)
    text, raw = token_text(tokenizer, token_id)
    return "bytes:" + "".join(f"\\x{b:02x}" for b in raw) if UNFINISHED in text else text


def top_table(
    tokenizer: Any, entry: TokenLogprobs, num_top: int | None = None, names_ids: bool = False
) -> dict[str, float]:
    """The most likely tokens at a position, and the actual token: token -> log-probability."""
    top = zip(entry.top_ids[:num_top], entry.top_logprobs[:num_top], strict=True)
    pairs: Iterable[tuple[int, float]] = [*top, (entry.token_id, entry.logprob)]
    return {token_key(tokenizer, i, names_ids): max(p, LOWEST_LOGPROB) for i, p in pairs}


def echoed(
    tokenizer: Any, text: str, prompt_ids: Sequence[int], entries: Entries, num_top: int, names_ids: bool = False
) -> dict[str, Any]:
    """OpenAI's lists for an echoed prompt. text_offset: number of characters before each token."""
    detokenizer = Detokenizer(tokenizer)
    offsets, done = [], 0
    for token_id in prompt_ids:
        offsets.append(min(done, len(text)))
        done += len(detokenizer.push(token_id))
    return {
        "tokens": [token_key(tokenizer, token_id, names_ids) for token_id in prompt_ids],
        "token_logprobs": [None if entry is None else max(entry.logprob, LOWEST_LOGPROB) for entry in entries],
        "top_logprobs": [
            None if entry is None else top_table(tokenizer, entry, num_top, names_ids) for entry in entries
        ],
        "text_offset": offsets,
    }


def prompt_logprobs(tokenizer: Any, entries: Entries, num_top: int) -> list[dict[str, Any] | None]:
    """vLLM's format: for each prompt token a table by token id. rank: 1 is the most likely; null if not requested."""
    return [None if entry is None else _by_id(tokenizer, entry, num_top) for entry in entries]


def _by_id(tokenizer: Any, entry: TokenLogprobs, num_top: int) -> dict[str, Any]:
    ranks = {token_id: rank for rank, token_id in enumerate(entry.top_ids, start=1)}
    pairs = {entry.token_id: entry.logprob} | dict(
        zip(entry.top_ids[:num_top], entry.top_logprobs[:num_top], strict=True)
    )
    return {
        str(token_id): {
            "logprob": max(logprob, LOWEST_LOGPROB),
            "rank": ranks.get(token_id),
            "decoded_token": token_text(tokenizer, token_id)[0],
        }
        for token_id, logprob in pairs.items()
    }
