"""Table of the fields of POST /v1/responses: honoured, accepted without effect, or refused.

Owns the rule for each field. Not here: types (schema.py), what a field means in chat (to_chat.py).
"""

from collections.abc import Mapping

from medusa_dist.api.schema.fields import CHAT_FIELDS, Rule, Use
from medusa_dist.api.translation.extra_fields import EXTRA_FIELDS

_YES = Rule(Use.HONOURED)
_STATELESS = "responses are not kept here; send the earlier items of the conversation in input"
_ECHOED = Rule(Use.ACCEPTED, "a label for the caller's own records, returned in the response")
_NOTHING_SHOWN = "about the results of tools and inputs that this service does not have"

RESPONSES_FIELDS: Mapping[str, Rule] = {
    "model": CHAT_FIELDS["model"],
    **dict.fromkeys(("stream", "max_output_tokens"), _YES),
    "input": Rule(
        Use.HONOURED, "a text, or items: message, reasoning, function_call, function_call_output; text content only"
    ),
    "instructions": Rule(Use.HONOURED, "a system message before the input"),
    "tools": Rule(Use.HONOURED, "of type function"),
    "tool_choice": Rule(Use.HONOURED, "none, auto, required, a function, or allowed_tools"),
    "parallel_tool_calls": _YES,
    "text": Rule(Use.HONOURED, "format: text, json_object or json_schema, always enforced; verbosity as in chat"),
    "reasoning": Rule(
        Use.HONOURED, "effort as reasoning_effort in chat; reasoning is returned whole, so there is no summary"
    ),
    "include": Rule(
        Use.HONOURED,
        "message.output_text.logprobs; reasoning.encrypted_content has no effect, because reasoning is returned as "
        f"text that can be sent back; the others have none, being {_NOTHING_SHOWN}",
    ),
    "top_logprobs": Rule(Use.HONOURED, "with message.output_text.logprobs in include"),
    "stream_options": Rule(Use.HONOURED, "include_obfuscation: true is refused"),
    "stop": Rule(Use.HONOURED, "not in OpenAI's API; as in chat"),
    **EXTRA_FIELDS,
    **dict.fromkeys(("metadata", "user", "safety_identifier", "prompt_cache_key"), _ECHOED),
    **{name: CHAT_FIELDS[name] for name in ("service_tier", "prompt_cache_options", "prompt_cache_retention")},
    "max_tool_calls": Rule(Use.ACCEPTED, "limits the calls of OpenAI's own tools, of which there are none here"),
    "image": Rule(Use.ACCEPTED, "about images in the input, which are refused"),
    "truncation": Rule(Use.REFUSED, "the input is never cut; shorten it", ("disabled",)),
    "store": Rule(Use.REFUSED, _STATELESS, (False,)),
    "previous_response_id": Rule(Use.REFUSED, _STATELESS),
    "conversation": Rule(Use.REFUSED, _STATELESS),
    "background": Rule(
        Use.REFUSED, "a response is made while its call is open; for work that can wait, run a batch job", (False,)
    ),
    "background_options": Rule(Use.REFUSED, "there are no background responses"),
    "prompt": Rule(Use.REFUSED, "there are no stored prompts; send instructions and input"),
    "context_management": Rule(Use.REFUSED, "the input is never cut or compacted; shorten it", ([],)),
    "moderation": CHAT_FIELDS["moderation"],
    "access_programs": Rule(Use.REFUSED, "there are no access programs"),
}
