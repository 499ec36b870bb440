"""Chat templates over marked text: rendering in which the origin of each character can be told.

Owns a Jinja environment like that of transformers, in which tests and searches see marked text as if it were not
marked, so that a template takes the same decisions. Not here: the marks (user_text.py), and the prompt itself, which
transformers renders (chat_template.py compares the two). No torch.
"""

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medusa_dist.text.user_text import Marks

_MARKS: ContextVar[Marks] = ContextVar("marks")
_OPERATORS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in"}
# Filters that pass the characters they are given on, or do not look at them.
_PASS_ON = frozenset(
    {
        "abs",
        "attr",
        "batch",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "format",
        "groupby",
        "indent",
        "items",
        "join",
    }
    | {"last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "safe"}
    | {"select", "selectattr", "slice", "sort", "string", "sum", "unique"}
)
_COMPARING_TESTS = frozenset(
    ("==", "!=", "<", "<=", ">", ">=", "eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan", "ge", "in")
)


def render_marked(source: str, marks: Marks, variables: Mapping[str, Any]) -> str:
    """The template's text. variables: with marked strings. Raises whatever the template raises."""
    token = _MARKS.set(marks)
    try:
        return _compile(source).render(variables)
    finally:
        _MARKS.reset(token)


def literal_text(tokenizer: Any) -> str:
    """All text that the tokenizer's chat templates contain, one piece a line."""
    given = getattr(tokenizer, "chat_template", None) or ""
    sources = given.values() if isinstance(given, Mapping) else [given]
    return "\n".join(map(_literals, sources))


@lru_cache(maxsize=8)
def _literals(source: str) -> str:
    try:
        tree = _Environment().parse(source)
    except TemplateError:
        return ""  # rendering says so
    pieces = [node.data for node in tree.find_all(nodes.TemplateData)]
    pieces += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\n".join(pieces)


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    return _Environment().from_string(source)


class _Code(CodeGenerator):
    """Compares what strings say, not how they are marked."""

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(environment.plain(")
        self.visit(node.expr, frame)
        self.write(")")
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self.write(f" {_OPERATORS[node.op]} environment.plain(")
        self.visit(node.expr, frame)
        self.write(")")


class _Generation(Extension):
    """transformers' tag around the assistant's text: here only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates, with Marks."""

    code_generator_class = _Code

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        for name in self.filters.keys() - _PASS_ON:
            self.filters[name] = _on_plain(self.filters[name])
        for name in ("lower", "upper", "capitalize"):
            self.filters[name] = _method(name)
        self.filters |= {"tojson": _tojson, "trim": _trim, "replace": _replace}
        for name in self.tests.keys() & _COMPARING_TESTS:
            test: Any = self.tests[name]
            self.tests[name] = _on_plain(test)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Methods of str work on what the string says."""
        text = getattr(obj, "__self__", None)
        if isinstance(text, str) and self.is_safe_callable(obj):
            own = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            return _MARKS.get().call(text, obj.__name__, *args, **own)
        return super().call(context, obj, *args, **kwargs)

    def plain(self, value: Any) -> Any:
        """An operand of a comparison."""
        return _MARKS.get().plain(value)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _on_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of unmarked values; a string that it makes of marked ones is marked wholly."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        marks = _MARKS.get()
        plain = marks.plain(args)
        result = function(*plain, **marks.plain(kwargs))
        is_marked = any(given is not used and given != used for given, used in zip(args, plain, strict=True))
        return marks.mark(result) if is_marked else result

    return run


def _method(name: str) -> Callable[[Any], Any]:
    return lambda value: _MARKS.get().call(str(value), name)


def _trim(value: Any, chars: str | None = None) -> Any:
    return _MARKS.get().call(str(value), "strip", *(() if chars is None else (chars,)))


def _replace(value: Any, old: str, new: str, count: int | None = None) -> Any:
    return _MARKS.get().call(str(value), "replace", str(old), str(new), *(() if count is None else (count,)))


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """As in transformers: JSON whose letters are not escaped."""
    if ensure_ascii:  # would escape the marks
        marks = _MARKS.get()
        return str(marks.mark(json.dumps(marks.plain(value), ensure_ascii=True, **options)))
    return json.dumps(value, ensure_ascii=False, **options)
