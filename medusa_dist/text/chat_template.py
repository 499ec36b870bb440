"""Messages and questions as prompts, through the model's chat template.

Owns the rendering for HTTP, LLM and the offline commands, which template is used, and that only the template writes
control tokens. Not here: the fields of a message (api/schema/messages.py), limits of time and memory
(bounded_render.py), which tokens are control tokens (control_tokens.py). No torch.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medusa_dist.errors import ConfigError, RequestError
from medusa_dist.text.bounded_render import TEMPLATE_FAILURES, describe_failure
from medusa_dist.text.control_tokens import literal_encoder
from medusa_dist.text.template_variables import template_variables
from medusa_dist.text.tracked_template import render_marked
from medusa_dist.text.user_text import Marks

Messages = Sequence[Mapping[str, Any]]
_FROM_REQUEST = ("chat_template_kwargs", "documents", "tools")  # arguments of render_chat with texts of the client
Run = Callable[[Callable[[], str]], str]


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the model comes with a template for conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def choose_template(tokenizer: Any, asked: str | None) -> None:
    """Make the tokenizer use the template that the config key `chat_template` asks for. None: leave the model's own.

    asked: the name of one of the model's templates, or a file with a Jinja template. Raises ConfigError.
    """
    if asked is None:
        return
    named = getattr(tokenizer, "chat_template", None)
    named = named if isinstance(named, dict) else {}
    path = Path(asked).expanduser()
    if asked in named:
        tokenizer.chat_template = named[asked]
    elif path.is_file():
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    else:
        names = f"one of {', '.join(sorted(named))}" if named else "none, as the model's templates have no names"
        raise ConfigError(
            f"chat_template: {asked!r} is neither a file nor the name of a template of this model; names: {names}"
        )


def select_template(templates: str | Mapping[str, str], has_tools: bool = False) -> str:
    """The template to render with: "tool_use" where tools are given and it exists, else "default".

    templates: the model's only one, or several by name. Raises RequestError where there is none to choose.
    """
    if isinstance(templates, str):
        return templates
    for name in ("tool_use", "default") if has_tools else ("default",):
        if name in templates:
            return templates[name]
    if len(templates) == 1:
        return next(iter(templates.values()))
    raise RequestError(
        f"this model has several chat templates ({', '.join(sorted(templates))}) and none is the default; whoever runs "
        "the service has to choose one by the config key chat_template",
        "messages",
    )


def _source(tokenizer: Any, chat_template: str | None, has_tools: bool) -> str:
    """The template's text: one that the request brings, or the model's."""
    return select_template(tokenizer.chat_template, has_tools) if chat_template is None else chat_template


def render_chat(  # noqa: PLR0913 - what transformers' function has
    tokenizer: Any,
    messages: Messages,
    add_generation_prompt: bool = True,
    instead: str = "generate",
    *,
    chat_template: str | None = None,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt's text, all special tokens written by the template.

    messages: {"role", "content"} each. add_generation_prompt: end with the assistant's cue. instead: what to use with a
    model without a template. chat_template: in place of the model's own. continue_final_message: end inside the last
    message, after its text as it is, blanks included; not with add_generation_prompt. chat_template_kwargs, documents:
    further variables for the template. tools: as OpenAI's API has them. Raises RequestError where there is no template,
    or it refuses the messages, or does not read a variable.
    """
    if chat_template is None and not has_chat_template(tokenizer):
        raise RequestError(f"this model has no chat template; use {instead}", "messages")
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "continue_final_message leaves the last message open, and add_generation_prompt begins a new one; set "
            "add_generation_prompt to false",
            "continue_final_message",
        )
    source = _source(tokenizer, chat_template, bool(tools))
    variables = template_variables(tokenizer, chat_template_kwargs, documents, source) | {"chat_template": source}
    variables |= {"tools": [dict(tool) for tool in tools]} if tools else {}
    turns = [dict(message) for message in messages]
    # Marks where the text ends. Templates strip blanks, but not those before the mark; the user cannot guess it.
    mark = secrets.token_hex(16) if continue_final_message else ""
    if mark:
        turns[-1]["content"] = f"{turns[-1]['content']}{mark}"
    try:
        text: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
        )
    except TEMPLATE_FAILURES as error:
        raise RequestError(
            f"the model's chat template rejects these messages: {describe_failure(error)}", "messages"
        ) from None
    if not mark:
        return text
    if mark not in text:
        raise RequestError(
            "continue_final_message: the model's chat template does not keep the text of the last message; remove it",
            "continue_final_message",
        )
    return text[: text.rindex(mark)]


def _at_once(work: Callable[[], str]) -> str:
    return work()


def encode_chat(
    tokenizer: Any,
    messages: Messages,
    *,
    sanitize: bool = True,
    add_special_tokens: bool = False,
    run: Run = _at_once,
    **template: Any,
) -> tuple[str, list[int]]:
    """Text and token ids of a conversation, by default ready for the assistant's answer. Raises RequestError.

    sanitize: control tokens in the messages and variables become plain text; only those that the template itself writes
    become tokens. add_special_tokens: also add what the tokenizer adds to a text; a beginning that the template has
    written is not repeated. run: runs each rendering, and nothing else (bounded_render.py). template: as in
    `render_chat`.
    """
    text = run(lambda: render_chat(tokenizer, messages, **template))
    encoder = literal_encoder(tokenizer)
    if sanitize:
        text, ids = _encode_sanitized(tokenizer, text, messages, run, template)
    else:
        ids = encoder.encode(text)
    return text, encoder.add_affixes(ids) if add_special_tokens else ids


def encode_question(tokenizer: Any, text: str) -> list[int]:
    """Token ids of one question: as a user's message if the model has a chat template, else as plain text."""
    if has_chat_template(tokenizer):
        return encode_chat(tokenizer, [{"role": "user", "content": text}])[1]
    return list(tokenizer(text)["input_ids"])


def _encode_sanitized(
    tokenizer: Any, text: str, messages: Messages, run: Run, template: Mapping[str, Any]
) -> tuple[str, list[int]]:
    """Text and token ids, with control tokens only where all characters are the template's.

    Renders again with marked strings. If the result is the same text with marks, they say whose each character is.
    """
    encoder = literal_encoder(tokenizer)
    given = {name: template[name] for name in _FROM_REQUEST if template.get(name)}
    marks = Marks([*messages, *given.values()], text)
    marked = run(lambda: _render_marked(tokenizer, marks, messages, template))
    if marks.plain(marked).startswith(text):
        return text, encoder.encode_tracked(text, marked[: len(text)], marks.is_marked)
    # The template looks into its input in a way that cannot be followed here: it gets to see marked text.
    rest = {name: marks.mark(value) for name, value in given.items()}
    options, turns = {**template, **rest}, marks.mark_messages(messages)
    marked = run(lambda: render_chat(tokenizer, turns, **options))
    opaque = marks.plain(marked)
    ids, whole = encoder.encode_tracked(opaque, marked, marks.is_marked), encoder.encode(text)
    if encoder.control_in(ids) == encoder.control_in(whole):
        return text, whole  # no control token more than the template writes whatever the messages say
    return opaque, ids


def _render_marked(tokenizer: Any, marks: Marks, messages: Messages, template: Mapping[str, Any]) -> str:
    """The conversation with marked strings, at least to the end of the prompt; "" if that fails."""
    turns = [{k: v for k, v in turn.items() if v is not None} for turn in marks.mark_messages(messages)]
    end = marks.new() if template.get("continue_final_message") else ""
    if end and isinstance(turns[-1].get("content"), str):
        turns[-1]["content"] += end
    variables = {
        "tools": marks.mark(template.get("tools")),
        "documents": marks.mark(template.get("documents")),
        "add_generation_prompt": template.get("add_generation_prompt", True),
        **tokenizer.special_tokens_map,
        "messages": turns,
        **marks.mark(template.get("chat_template_kwargs") or {}),
    }
    try:
        marked = render_marked(
            _source(tokenizer, template.get("chat_template"), bool(template.get("tools"))), marks, variables
        )
    except TEMPLATE_FAILURES:
        return ""
    return marked[: marked.rindex(end)] if end and end in marked else marked
