"""Which request fields are honoured: the one table that the request models and /openapi.json use.

Owns the rule for each field. Not here: types and ranges (requests.py), what a field does (sampling_params.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from medusa_dist.errors import RequestError


class Use(StrEnum):
    """What happens to a field. A field that would affect the output is never accepted and ignored."""

    HONOURED = "honoured"
    ACCEPTED = "accepted, no effect on the output"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule for a field. neutral: values of a refused field, besides null, that have no effect."""

    use: Use
    note: str = ""
    neutral: tuple[Any, ...] = ()


FEW = 8  # known fields that fit into an error message
_YES = Rule(Use.HONOURED)
_LABEL = Rule(Use.ACCEPTED, "a label for the caller's own records")
_TOOLS = "tool calling is not supported"

_SHARED: Mapping[str, Rule] = {
    **dict.fromkeys(("model", "n", "stream", "stop", "temperature", "top_p"), _YES),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "logit_bias", "logprobs"), _YES),
    "max_tokens": Rule(Use.HONOURED, "chat: null means as many as fit; completions: default 16"),
    "stream_options": Rule(Use.HONOURED, "include_usage; include_obfuscation is refused"),
    "seed": Rule(
        Use.HONOURED, "null: random, reported in the response; choice i of n uses a seed derived from it and i"
    ),
    "user": _LABEL,
    # Not in OpenAI's API; named as in vLLM.
    **dict.fromkeys(("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens"), _YES),
    "prompt_logprobs": Rule(Use.HONOURED, "in vLLM's format; not with stream"),
    "acceptance": Rule(Use.HONOURED, '"typical" is lossy (docs/exactness.md); the response names the rule used'),
    "beam_width": Rule(
        Use.HONOURED, "returns the n best hypotheses of a beam search (docs/beam_search.md); not streamed"
    ),
    "use_beam_search": Rule(Use.HONOURED, "vLLM's field for beam_width = n"),
    "length_penalty": Rule(Use.HONOURED, "beam search only; as in transformers"),
    "early_stopping": Rule(Use.HONOURED, "beam search only; as in transformers"),
    **dict.fromkeys(("typical_epsilon", "typical_delta"), Rule(Use.HONOURED, "thresholds of typical acceptance")),
    "priority": Rule(
        Use.HONOURED, "lower values are scheduled first and preempted last; ties are first come, first served"
    ),
    "cache_salt": Rule(Use.HONOURED, "the prefix cache is shared only with requests of the same salt"),
    "structured_outputs": Rule(Use.HONOURED, "one of json, regex, choice, grammar, json_object"),
    "speculation": Rule(Use.HONOURED, '"off" decodes this request without draft tokens; the output is the same'),
}

CHAT_FIELDS: Mapping[str, Rule] = {
    **_SHARED,
    "messages": Rule(Use.HONOURED, "text only; roles: system, developer (treated as system), user, assistant"),
    "max_completion_tokens": Rule(Use.HONOURED, "the newer name of max_tokens"),
    "top_logprobs": _YES,
    "add_generation_prompt": Rule(Use.HONOURED, "false: no assistant header after the last message"),
    **dict.fromkeys(("metadata", "store", "safety_identifier"), _LABEL),
    "service_tier": Rule(Use.ACCEPTED, "there is only one tier"),
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        Rule(Use.ACCEPTED, "prefix caching is automatic"),
    ),
    "parallel_tool_calls": Rule(Use.ACCEPTED, "no effect without tools, which are refused"),
    "tools": Rule(Use.REFUSED, _TOOLS, ([],)),
    "tool_choice": Rule(Use.REFUSED, _TOOLS, ("none", "auto")),
    "functions": Rule(Use.REFUSED, _TOOLS, ([],)),
    "function_call": Rule(Use.REFUSED, _TOOLS, ("none", "auto")),
    "response_format": Rule(Use.HONOURED, "text, json_object or json_schema; always enforced, strict or not"),
    "modalities": Rule(Use.REFUSED, "text only", (["text"], [])),
    "audio": Rule(Use.REFUSED, "text only"),
    "prediction": Rule(Use.REFUSED, "draft tokens come from the Medusa heads"),
    "reasoning_effort": Rule(Use.REFUSED, "not available for this model", ("none",)),
    "verbosity": Rule(Use.REFUSED, "ask for it in the prompt", ("medium",)),
    "web_search_options": Rule(Use.REFUSED, "web search is not available"),
    "moderation": Rule(Use.REFUSED, "moderation is not available"),
}

COMPLETION_FIELDS: Mapping[str, Rule] = {
    **_SHARED,
    "prompt": Rule(Use.HONOURED, "a text, token ids, or a list of either"),
    "echo": Rule(
        Use.HONOURED, "with logprobs, prompt tokens get logprobs too; with max_tokens 0, only the prompt is returned"
    ),
    "best_of": Rule(Use.REFUSED, "set n and choose", (1,)),
    "suffix": Rule(Use.REFUSED, "fill-in-the-middle is not supported", ("",)),
}


def refuse(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> None:
    """Raise RequestError for the first refused field with a value that has an effect."""
    for name, rule in rules.items():
        value = values.get(name)
        if rule.use is not Use.REFUSED or value is None:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in rule.neutral):
            raise RequestError(f"{name} is not supported: {rule.note}; remove it", name, "unsupported_parameter")


def refuse_unknown(known: Iterable[str], given: Iterable[Any], where: str = "") -> None:
    """Raise RequestError for the first unknown field, with the closest known one."""
    names = list(known)
    for name in given:
        if name in names:
            continue
        close = get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {where}{close[0]}?" if close else ""
        if not close and len(names) <= FEW:
            hint = f"; known fields: {', '.join(names)}"
        raise RequestError(f"unknown field {where}{name}{hint}", f"{where}{name}", "unknown_parameter")
