"""Which request fields are honoured: the one table behind the schema's refusals, /openapi.json and the README.

Owns the verdict on each field. Not here: types and ranges (schema.py), what a field does (request.SamplingParams).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from medusa_dist.errors import RequestError


class Use(StrEnum):
    """What happens to a field. There is no fourth way: nothing that matters is taken and ignored."""

    HONOURED = "honoured"
    ACCEPTED = "accepted, no effect on the output"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Rule:
    """The verdict on a field. neutral: values, besides null, of a refused field that ask for nothing."""

    use: Use
    note: str = ""
    neutral: tuple[Any, ...] = ()


FEW = 8  # so many known fields fit into an error message
_YES = Rule(Use.HONOURED)
_LABEL = Rule(Use.ACCEPTED, "a label for the caller's own books")
_TOOLS = "tools are not served"

_SHARED: Mapping[str, Rule] = {
    **dict.fromkeys(("model", "n", "stream", "stop", "temperature", "top_p"), _YES),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "logit_bias", "logprobs"), _YES),
    "max_tokens": Rule(Use.HONOURED, "chat: null means as many as fit; completions: 16 unless given"),
    "stream_options": Rule(Use.HONOURED, "include_usage; include_obfuscation is refused"),
    "seed": Rule(Use.HONOURED, "null: drawn and reported; choice i of n uses a seed derived from it and i"),
    "user": _LABEL,
    # Not OpenAI's; named as in vLLM.
    **dict.fromkeys(("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens"), _YES),
    "prompt_logprobs": Rule(Use.HONOURED, "in vLLM's form; not with stream"),
    "acceptance": Rule(Use.HONOURED, '"typical" is lossy (docs/exactness.md); the answer names it'),
    "beam_width": Rule(Use.HONOURED, "the n best hypotheses of a beam search (docs/beam_search.md); not streamed"),
    "use_beam_search": Rule(Use.HONOURED, "vLLM's way to ask for beam_width = n"),
    "length_penalty": Rule(Use.HONOURED, "of a beam search; as in transformers"),
    "early_stopping": Rule(Use.HONOURED, "of a beam search; as in transformers"),
    **dict.fromkeys(("typical_epsilon", "typical_delta"), Rule(Use.HONOURED, "bounds of acceptance typical")),
    "priority": Rule(Use.HONOURED, "lower is served first and preempted last; equal ones first come, first served"),
    "cache_salt": Rule(Use.HONOURED, "the prefix cache is shared with requests of the same salt only"),
    "structured_outputs": Rule(Use.HONOURED, "one of json, regex, choice, grammar, json_object"),
    "speculation": Rule(Use.HONOURED, '"off" decodes this request without drafts; the output is the same'),
}

CHAT_FIELDS: Mapping[str, Rule] = {
    **_SHARED,
    "messages": Rule(Use.HONOURED, "text only; roles system, developer (treated as system), user, assistant"),
    "max_completion_tokens": Rule(Use.HONOURED, "the newer name of max_tokens"),
    "top_logprobs": _YES,
    "add_generation_prompt": Rule(Use.HONOURED, "false: the last message is not followed by the assistant's cue"),
    **dict.fromkeys(("metadata", "store", "safety_identifier"), _LABEL),
    "service_tier": Rule(Use.ACCEPTED, "there is one tier"),
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        Rule(Use.ACCEPTED, "prompts with equal beginnings share work without hints"),
    ),
    "parallel_tool_calls": Rule(Use.ACCEPTED, "means nothing without tools, and those are refused"),
    "tools": Rule(Use.REFUSED, _TOOLS, ([],)),
    "tool_choice": Rule(Use.REFUSED, _TOOLS, ("none", "auto")),
    "functions": Rule(Use.REFUSED, _TOOLS, ([],)),
    "function_call": Rule(Use.REFUSED, _TOOLS, ("none", "auto")),
    "response_format": Rule(Use.HONOURED, "text, json_object or json_schema; obeyed token by token, strict or not"),
    "modalities": Rule(Use.REFUSED, "text only", (["text"], [])),
    "audio": Rule(Use.REFUSED, "text only"),
    "prediction": Rule(Use.REFUSED, "drafts come from the Medusa heads"),
    "reasoning_effort": Rule(Use.REFUSED, "the model has no such switch here", ("none",)),
    "verbosity": Rule(Use.REFUSED, "ask for it in the prompt", ("medium",)),
    "web_search_options": Rule(Use.REFUSED, "nothing is searched"),
    "moderation": Rule(Use.REFUSED, "nothing is moderated"),
}

COMPLETION_FIELDS: Mapping[str, Rule] = {
    **_SHARED,
    "prompt": Rule(Use.HONOURED, "a text, token ids, or a list of either"),
    "echo": Rule(Use.HONOURED, "with logprobs the prompt is scored, too; with max_tokens 0 it is all there is"),
    "best_of": Rule(Use.REFUSED, "ask for n and choose", (1,)),
    "suffix": Rule(Use.REFUSED, "there is no filling-in between two texts", ("",)),
}


def refuse(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> None:
    """Raise RequestError for the first refused field that asks for something."""
    for name, rule in rules.items():
        value = values.get(name)
        if rule.use is not Use.REFUSED or value is None:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in rule.neutral):
            raise RequestError(f"{name} is not supported: {rule.note}; leave it out", name, "unsupported_parameter")


def refuse_unknown(known: Iterable[str], given: Iterable[Any], where: str = "") -> None:
    """Raise RequestError for the first field nobody knows, with the closest one that exists."""
    names = list(known)
    for name in given:
        if name in names:
            continue
        close = get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {where}{close[0]}?" if close else ""
        if not close and len(names) <= FEW:
            hint = f"; known are {', '.join(names)}"
        raise RequestError(f"unknown field {where}{name}{hint}", f"{where}{name}", "unknown_parameter")
