"""Messages and questions as prompts, through the model's chat template.

Owns the rendering for HTTP, LLM and the offline commands. Not here: the fields of a message (api/schema/requests.py).
No torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from medusa_dist.errors import RequestError


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the model comes with a template for conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, instead: str = "generate"
) -> str:
    """The prompt's text, all special tokens written by the template.

    messages: {"role", "content"} each. add_generation_prompt: end with the assistant's cue. instead: what to use with a
    model without a template. Raises RequestError where there is no template, or it refuses the messages.
    """
    if not has_chat_template(tokenizer):
        raise RequestError(f"this model has no chat template; use {instead}", "messages")
    turns = [dict(message) for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError) as error:
        raise RequestError(f"the model's chat template rejects these messages: {error}", "messages") from None
    return text


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered conversation: no further special tokens are added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's answer. Raises RequestError."""
    return encode_rendered(tokenizer, render_chat(tokenizer, messages))


def encode_question(tokenizer: Any, text: str) -> list[int]:
    """Token ids of one question: as a user's message if the model has a chat template, else as plain text."""
    if has_chat_template(tokenizer):
        return encode_chat(tokenizer, [{"role": "user", "content": text}])
    return list(tokenizer(text)["input_ids"])
