"""Bad words as the token sequences that are banned.

Owns the tokenisation of bad_words. Not here: the ban itself (ops/sampling.py). No torch.
"""

from dataclasses import replace
from typing import Any

from medusa_dist.errors import RequestError
from medusa_dist.sampling_fields import MAX_BAD_WORDS
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.no_tokenizer import NoTokenizer


def with_bad_word_ids(params: SamplingParams, tokenizer: Any) -> SamplingParams:
    """The params with each text in bad_words replaced by its token sequences. Raises RequestError naming the field.

    As in vLLM, a word is banned at the start of a text and after a blank. Both are always banned; vLLM bans the second
    only if it has as many tokens as the first.
    """
    texts = [word for word in params.bad_words if isinstance(word, str)]
    if not texts:
        return params
    if len(params.bad_words) > MAX_BAD_WORDS:
        raise RequestError(
            f"bad_words has {len(params.bad_words)} entries; the maximum is {MAX_BAD_WORDS}", "bad_words"
        )
    if isinstance(tokenizer, NoTokenizer):
        raise RequestError(
            "bad_words: texts need a tokenizer, and this model is served without one (skip_tokenizer_init); give token "
            "ids",
            "bad_words",
        )
    found: list[tuple[int, ...]] = []
    for word in params.bad_words:
        found += _sequences(word, tokenizer) if isinstance(word, str) else [word]
    return replace(params, bad_words=tuple(dict.fromkeys(found)))


def _sequences(word: str, tokenizer: Any) -> list[tuple[int, ...]]:
    bare = word.lstrip()
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (bare, f" {bare}")]
    if not ids[0]:
        raise RequestError(f"bad_words: {word!r} has no tokens", "bad_words")
    return [found for found in ids if found]
