"""Table of request fields: honoured, accepted without effect, or refused.

Owns the rule for each field of a request, a message and a content part, for the request models and /openapi.json. Not
here: types and ranges (requests.py, messages.py), what a field does (sampling_params.py).
"""

from collections.abc import Callable, Iterable, Mapping
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
_NO_GUIDED = "there is one backend, llguidance"
_FUNCTIONS = "use tools, its newer name"
_RECORD = "another service's own record of reasoning; send the text as reasoning_content"

_SHARED: Mapping[str, Rule] = {
    "model": Rule(Use.HONOURED, "may be left out or empty: there is one model"),
    **dict.fromkeys(("n", "stream", "stop", "temperature", "top_p"), _YES),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "logit_bias", "logprobs"), _YES),
    "max_tokens": Rule(Use.HONOURED, "chat: null means as many as fit; completions: default 16"),
    "stream_options": Rule(
        Use.HONOURED, "include_usage, continuous_usage_stats (usage in each chunk); include_obfuscation is refused"
    ),
    "seed": Rule(
        Use.HONOURED, "null or -1: random, reported in the response; choice i of n uses a seed derived from it and i"
    ),
    **dict.fromkeys(("user", "request_id", "session_id"), _LABEL),
    "response_format": Rule(Use.HONOURED, "text, json_object or json_schema; always enforced, strict or not"),
    # Not in OpenAI's API; named as in vLLM.
    **dict.fromkeys(("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens"), _YES),
    "allowed_token_ids": Rule(
        Use.HONOURED, "only these; include the end-of-sequence token if the output may end early"
    ),
    "bad_words": Rule(
        Use.HONOURED, "texts that are not generated, with and without a blank before; as the tokenizer writes them"
    ),
    "include_stop_str_in_output": Rule(Use.HONOURED, "the text that ended the output is part of it"),
    "skip_special_tokens": Rule(Use.HONOURED, "false: special tokens are shown in the text"),
    "spaces_between_special_tokens": Rule(Use.HONOURED, "false: no blanks that some tokenizers write between them"),
    "return_token_ids": Rule(Use.HONOURED, "adds prompt_token_ids and token_ids"),
    "return_tokens_as_token_ids": Rule(Use.HONOURED, 'tokens in logprobs are named "token_id:5"'),
    "explain": Rule(
        Use.HONOURED, "true adds steps: who guessed which token and why (docs/requests.md); not with beams"
    ),
    "truncate_prompt_tokens": Rule(Use.HONOURED, "keeps the last k tokens of a longer prompt; -1: as many as fit"),
    "truncation_side": Rule(Use.HONOURED, '"left" (default) cuts the start of the prompt, "right" its end'),
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
    "add_special_tokens": Rule(
        Use.HONOURED,
        "what the tokenizer adds to a text, such as a beginning token. Default: true for completions, false for chat, "
        "whose template writes its own; a beginning is never written twice in chat",
    ),
    "structured_outputs": Rule(Use.HONOURED, "one of json, regex, choice, grammar, json_object"),
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        Rule(Use.HONOURED, "vLLM's former names of the kinds of structured_outputs"),
    ),
    "guided_decoding_backend": Rule(Use.REFUSED, _NO_GUIDED, ("auto", "guidance")),
    "guided_whitespace_pattern": Rule(Use.REFUSED, "blanks in JSON are limited already"),
    "logits_processors": Rule(Use.REFUSED, "code in requests is not run", ([],)),
    **dict.fromkeys(
        ("kv_transfer_params", "ec_transfer_params"),
        Rule(Use.REFUSED, "prompt and output are computed in one service", ({},)),
    ),
    "vllm_xargs": Rule(Use.REFUSED, "there are no extensions to read them", ({},)),
    "logprob_token_ids": Rule(Use.REFUSED, "ask for the most likely tokens, with top_logprobs or logprobs", ([],)),
    "thinking_token_budget": Rule(Use.REFUSED, "thinking has no limit of its own; use max_tokens", (-1,)),
    "repetition_detection": Rule(Use.REFUSED, "use repetition_penalty, or stop reading"),
    "stream_interval": Rule(Use.REFUSED, "a chunk is sent for each step", (1,)),
    "watermarking": Rule(Use.REFUSED, "the output is the model's own", (False,)),
    "routed_experts_prompt_start": Rule(Use.REFUSED, "experts are not reported", (0,)),
    "return_token_offsets": Rule(Use.REFUSED, "ask for logprobs, which have text_offset in completions", (False,)),
    "return_mm_kwargs": Rule(Use.REFUSED, "text only", (True, False)),
    "speculation": Rule(Use.HONOURED, '"off" decodes this request without draft tokens; the output is the same'),
}

CHAT_FIELDS: Mapping[str, Rule] = {
    **_SHARED,
    "messages": Rule(Use.HONOURED, "text only; roles: system, developer (treated as system), user, assistant, tool"),
    "max_completion_tokens": Rule(Use.HONOURED, "the newer name of max_tokens"),
    "top_logprobs": _YES,
    "add_generation_prompt": Rule(Use.HONOURED, "false: no assistant header after the last message"),
    "continue_final_message": Rule(
        Use.HONOURED, "the output continues the last message, blanks at its end included; it is not repeated"
    ),
    "chat_template_kwargs": Rule(
        Use.HONOURED, "variables of the chat template; those that it does not read are refused unless null or false"
    ),
    "documents": Rule(Use.HONOURED, "refused if the chat template does not read them"),
    "chat_template": Rule(Use.REFUSED, "templates from requests are not run; use the model's own"),
    "echo": Rule(Use.REFUSED, "the message has the new text alone; put your own before it", (False,)),
    "include_reasoning": Rule(Use.HONOURED, "false: the message has the answer without its reasoning"),
    "return_prompt_text": Rule(Use.REFUSED, "use return_token_ids", (False,)),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs"), Rule(Use.REFUSED, "text only", ({},))),
    **dict.fromkeys(("metadata", "store", "safety_identifier"), _LABEL),
    "service_tier": Rule(Use.ACCEPTED, "there is only one tier"),
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        Rule(Use.ACCEPTED, "prefix caching is automatic"),
    ),
    "tools": Rule(Use.HONOURED, "functions; calls always match their schemas (docs/tools.md)"),
    "tool_choice": Rule(Use.HONOURED, "none, auto, required, a function, or allowed_tools"),
    "parallel_tool_calls": Rule(Use.HONOURED, "false: one call at most; no effect without tools"),
    "functions": Rule(Use.REFUSED, _FUNCTIONS, ([],)),
    "function_call": Rule(Use.REFUSED, _FUNCTIONS, ("none", "auto")),
    "modalities": Rule(Use.REFUSED, "text only", (["text"], [])),
    "audio": Rule(Use.REFUSED, "text only"),
    "prediction": Rule(Use.REFUSED, "draft tokens come from the Medusa heads"),
    "reasoning_effort": Rule(
        Use.HONOURED,
        "a hint: goes to the variables that the chat template has for thinking; what has no effect is in the answer's "
        "warnings",
    ),
    "thinking": Rule(Use.HONOURED, "type: enabled, adaptive or disabled; a hint, as reasoning_effort"),
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
    "parse_special": Rule(
        Use.HONOURED, "false: control tokens in a text prompt are plain text, as they always are in messages"
    ),
    "prompt_embeds": Rule(Use.REFUSED, "send text or token ids"),
    "best_of": Rule(Use.REFUSED, "set n and choose", (1,)),
    "suffix": Rule(Use.REFUSED, "fill-in-the-middle is not supported", ("",)),
}

MESSAGE_FIELDS: Mapping[str, Rule] = {
    "role": _YES,
    "content": Rule(Use.HONOURED, "a text, or text parts, which are joined by a line break"),
    "name": Rule(Use.HONOURED, "reaches the model if the chat template uses it"),
    "reasoning_content": Rule(
        Use.HONOURED, "of an assistant's earlier answer; reaches the model if the chat template uses it"
    ),
    "reasoning": Rule(Use.HONOURED, "another name of reasoning_content, which counts if both are given"),
    # What services and libraries put into their messages.
    **dict.fromkeys(("id", "object", "status", "index", "opts", "metadata", "model", "weight"), _LABEL),
    **dict.fromkeys(("created", "created_at", "createdAt", "timestamp", "provider_specific_fields"), _LABEL),
    **dict.fromkeys(("reasoning_details", "thinking_blocks"), Rule(Use.ACCEPTED, _RECORD)),
    "parsed": Rule(Use.ACCEPTED, "the client's own reading of content"),
    **dict.fromkeys(("annotations", "citations"), Rule(Use.ACCEPTED, "about content; not part of it")),
    **dict.fromkeys(("cache_control", "prompt_cache_breakpoint"), Rule(Use.ACCEPTED, "prefix caching is automatic")),
    "type": Rule(Use.REFUSED, "all messages are text", ("text", "message")),
    "tool_calls": Rule(Use.HONOURED, "of an assistant's earlier answer; arguments must be a JSON object"),
    "tool_call_id": Rule(Use.HONOURED, "of role tool: the call that the message is the result of"),
    "function_call": Rule(Use.REFUSED, _FUNCTIONS),
    "audio": Rule(Use.REFUSED, "text only"),
    "images": Rule(Use.REFUSED, "text only", ([],)),
    "refusal": Rule(Use.REFUSED, "put the text in content", ("",)),
    **dict.fromkeys(("prefix", "partial"), Rule(Use.REFUSED, "a message is always complete", (False,))),
}

PART_FIELDS: Mapping[str, Rule] = {
    "type": Rule(Use.HONOURED, "text, or its names in the Responses API: input_text and output_text"),
    "text": _YES,
    **dict.fromkeys(("id", "index", "metadata", "logprobs"), _LABEL),
    **{name: MESSAGE_FIELDS[name] for name in ("annotations", "citations", "cache_control", "prompt_cache_breakpoint")},
}


def document(rules: Mapping[str, Rule]) -> Callable[[dict[str, Any]], None]:
    """Write the rules into a JSON schema. Fields that the model has no need for are added."""

    def fill(schema: dict[str, Any]) -> None:
        for name, rule in rules.items():
            value = schema["properties"].setdefault(name, {"title": name})
            if rule.use is Use.REFUSED:
                value["enum"] = [None, *rule.neutral]
            value["description"] = f"{rule.use}: {rule.note}" if rule.note else str(rule.use)

    return fill


def refuse(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> None:
    """Raise RequestError for the first refused field with a value that has an effect."""
    for name, rule in rules.items():
        value = values.get(name)
        if rule.use is not Use.REFUSED or value is None:
            continue
        if not any(_is_same(value, neutral) for neutral in rule.neutral):
            raise RequestError(f"{name} is not supported: {rule.note}; remove it", name, "unsupported_parameter")


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are one number, and true is none."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


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


def refuse_other_types(data: Any, known: Iterable[str], what: str, hint: str, field: str) -> Any:
    """The data of an object, unless its `type` is not known: then raise RequestError. For validators before others."""
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind not in known:
        raise RequestError(f"{what} of type {kind[:40]!r} are not supported; {hint}", field)
    return data
