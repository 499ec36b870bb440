"""Tables of the fields of POST /v1/messages and count_tokens: honoured, accepted without effect, or refused.

Owns the rule for each field. Not here: types (schema.py), what a field means in chat (to_chat.py).
"""

from collections.abc import Mapping

from medusa_dist.api.schema.fields import CHAT_FIELDS, Rule, Use
from medusa_dist.api.translation.extra_fields import EXTRA_FIELDS

_YES = Rule(Use.HONOURED)
_LABEL = Rule(Use.ACCEPTED, "a label for the caller's own records")

COUNT_FIELDS: Mapping[str, Rule] = {
    "model": CHAT_FIELDS["model"],
    "messages": Rule(
        Use.HONOURED,
        "blocks: text, thinking, tool_use, tool_result. Messages of one role that follow each other are one message; "
        "if the last one is the assistant's, the answer continues it",
    ),
    "system": Rule(Use.HONOURED, "a text, or text blocks"),
    "tools": Rule(Use.HONOURED, "of type custom"),
    "tool_choice": Rule(Use.HONOURED, "auto, any, tool or none; disable_parallel_tool_use"),
    "thinking": Rule(
        Use.HONOURED,
        "type as thinking in chat: a hint for the chat template; budget_tokens is a wish, and max_tokens the limit; "
        "display: omitted leaves thinking out of the message",
    ),
    "output_config": Rule(Use.HONOURED, "format: a JSON schema, enforced; effort as reasoning_effort in chat"),
    "cache_control": Rule(Use.ACCEPTED, "prefix caching is automatic"),
    **dict.fromkeys(("user_profile_id", "workspace_id"), _LABEL),
    "speed": Rule(Use.REFUSED, "there is only one speed", ("standard",)),
    "context_management": Rule(Use.REFUSED, "the conversation is never cut or edited", ({}, {"edits": []})),
    "mcp_servers": Rule(Use.REFUSED, "the service calls no tools; send them as tools", ([],)),
}

MESSAGES_FIELDS: Mapping[str, Rule] = {
    **COUNT_FIELDS,
    "max_tokens": Rule(Use.HONOURED, "required; prompt and max_tokens must fit into the model's context"),
    "stop_sequences": _YES,
    "stream": _YES,
    **EXTRA_FIELDS,
    "metadata": _LABEL,
    "service_tier": CHAT_FIELDS["service_tier"],
    "container": Rule(Use.REFUSED, "there are no containers"),
    "diagnostics": Rule(Use.REFUSED, "messages are not kept here"),
    "inference_geo": Rule(Use.REFUSED, "the service is where it is"),
}
