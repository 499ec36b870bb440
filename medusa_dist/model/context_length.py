"""How long a context a model's config allows, and whether `max_model_len` fits into it.

Owns the rule per rotary scaling (vLLM's, except where factors grow with the context). Not here: how large the KV cache
is (engine/startup/kv_sizing.py).
"""

from dataclasses import dataclass
from typing import Any

from medusa_dist.errors import ConfigError

UNLIMITED = 2**31 - 1
_GROWING = ("dynamic", "longrope", "su")  # their factors depend on the longest position in the batch
_SCALED_ALREADY = ("default", "llama3", "mrope", "proportional")  # max_position_embeddings is the scaled length


@dataclass(frozen=True)
class ContextLength:
    """The longest context in tokens, and the config entries it follows from, for error messages."""

    tokens: int
    reason: str


def context_length(config: Any) -> ContextLength:
    """The longest context (prompt and output) that the weights support.

    YaRN reaches factor x original_max_position_embeddings, linear scaling factor x max_position_embeddings; where there
    are parameters per kind of layer (Gemma 3), max_position_embeddings is the scaled length. Rotary variants whose
    factors change with the longest position in a batch are served only up to the length where they start to: beyond it,
    one request's length would change another's output.
    """
    longest = int(getattr(config, "max_position_embeddings", None) or UNLIMITED)
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    lengths = [_scaled(part, longest, bool(nested)) for part in nested or [rope]]
    return min(lengths, key=lambda length: length.tokens)


def _scaled(part: dict[str, Any], longest: int, per_layer: bool) -> ContextLength:
    """What one set of rotary parameters allows."""
    kind = part.get("rope_type") or part.get("type") or "default"
    original = int(part.get("original_max_position_embeddings") or longest)
    factor = float(part.get("factor") or 1.0)
    if kind in _GROWING:
        fixed = min(original, longest)
        return ContextLength(
            fixed,
            f"{kind} rotary embedding: beyond {fixed} of {longest} tokens, its factors would change with the longest "
            "request of a batch",
        )
    if kind == "yarn" and factor != 1.0:
        return ContextLength(
            int(factor * original), f"yarn: factor {factor:g} x original_max_position_embeddings {original}"
        )
    if kind not in _SCALED_ALREADY and not per_layer and factor != 1.0:
        return ContextLength(int(factor * original), f"{kind}: factor {factor:g} x max_position_embeddings {original}")
    return ContextLength(longest, f"max_position_embeddings {longest}")


def resolve_max_model_len(asked: int | None, context: ContextLength) -> int:
    """The context length to serve: `asked` (the config key max_model_len), or all there is.

    Raises ConfigError if the model does not reach what is asked.
    """
    if asked is not None and asked > context.tokens:
        raise ConfigError(
            f"max_model_len {asked} exceeds the model's context length of {context.tokens} tokens ({context.reason}); "
            f"set it to at most {context.tokens}, or change the scaling in the model's config.json"
        )
    return context.tokens if asked is None else asked


def check_cache_holds(asked: int | None, max_model_len: int, cache_tokens: int, kv_cache_tokens: int | None) -> int:
    """The context length that the KV cache can hold: max_model_len, or less where the key max_model_len is not set.

    asked: the config key max_model_len. cache_tokens: what the cache holds. Raises ConfigError if that is less than
    asked, naming the key that sets the cache's size.
    """
    if asked is not None and cache_tokens < asked:
        key = "memory_fraction, or add ranks" if kv_cache_tokens is None else f"kv_cache_tokens ({kv_cache_tokens})"
        raise ConfigError(
            f"max_model_len {asked} exceeds the {cache_tokens} tokens that the KV cache holds; set it to at most "
            f"{cache_tokens}, or raise {key}"
        )
    return min(max_model_len, cache_tokens)
