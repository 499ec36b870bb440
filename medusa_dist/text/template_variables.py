"""Variables of a chat template: which it reads, and the checks of those that a request sets.

Owns what chat_template_kwargs and documents may contain. Not here: rendering (chat_template.py). No torch.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medusa_dist.errors import RequestError

KWARGS = "chat_template_kwargs"


class _Generation(Extension):
    """transformers' tag around assistant text; here its content alone counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def variables_of(template: str) -> frozenset[str]:
    """Names that a template takes from outside, `messages` among them. Empty for a template that cannot be parsed."""
    parsed = _parsed(template)
    return frozenset() if parsed is None else frozenset(meta.find_undeclared_variables(parsed))


@lru_cache(maxsize=8)
def texts_of(template: str) -> frozenset[str]:
    """The texts in quotes in a template's expressions. Empty for a template that cannot be parsed."""
    parsed = _parsed(template)
    constants = () if parsed is None else parsed.find_all(nodes.Const)
    return frozenset(constant.value for constant in constants if isinstance(constant.value, str))


def _parsed(template: str) -> nodes.Template | None:
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    try:
        return environment.parse(template)
    except TemplateError:
        return None


def template_variables(
    tokenizer: Any,
    kwargs: Mapping[str, Any] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """Arguments of apply_chat_template for a request's chat_template_kwargs and documents. chat_template: None = the
    model's own.

    Raises RequestError, naming the field, for what the model's template does not read, since it would have no effect;
    null and false ask for nothing and pass. Also for names that are no variables of a template.
    """
    given = dict(kwargs or {})
    if not given and not documents:
        return {}
    known = variables_of(tokenizer.get_chat_template(chat_template))
    for name, value in given.items():
        _check_variable(name, value, known, tokenizer)
    _check_text(given, KWARGS)
    if documents:
        if "documents" not in known:
            raise RequestError(
                "documents: the model's chat template does not read them; put their text into a message", "documents"
            )
        _check_text(documents, "documents")
        given["documents"] = [dict(document) for document in documents]
    return given


def _check_variable(name: str, value: Any, known: frozenset[str], tokenizer: Any) -> None:
    if name == "messages" or name in inspect.signature(tokenizer.apply_chat_template).parameters:
        raise RequestError(f"{KWARGS}: {name} is no variable of a template; remove it", KWARGS)
    if name in known:
        return
    close = get_close_matches(name, known, n=1)
    if value in (None, False) and not close:
        return
    readable = sorted(known - {"messages", "add_generation_prompt", "raise_exception", "strftime_now", "documents"})
    hint = f"did you mean {close[0]}?" if close else f"it reads: {', '.join(readable) or 'none'}"
    raise RequestError(f"{KWARGS}: the model's chat template does not read {name}; {hint}", KWARGS)


def _check_text(value: Any, field: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"{field}: a text contains a lone surrogate, which is not a valid character", field
        ) from None
