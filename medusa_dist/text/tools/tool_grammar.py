"""The grammar of an answer with reasoning and tools: free text, then calls in the format of the model.

Owns the order of the parts, in llguidance's Lark syntax. Not here: compiling (engine/state/matcher.py), arguments
(argument_rules.py), formats (formats.py). Source of the technique: structural tags (llguidance, XGrammar).
Text is free up to the mark of a call. From there on only calls that can be read are possible: each names a tool of the
request, and its arguments match the tool's schema. A mark may be one token or spelled by several.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medusa_dist.text.tools.argument_rules import argument_rules, shared_rules
from medusa_dist.text.tools.formats import ToolFormat
from medusa_dist.text.tools.reasoning import ReasoningMarks

BODY = "body"  # the name of the grammar for text that is no call
_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What an answer may consist of.

    schemas: of the tools' parameters, by name, in keywords that can be enforced. must_call: text instead of calls is
    not allowed. one_call: at most one call. marks: of the reasoning. is_reasoning: the prompt already opened it.
    has_body: text that is no call follows another grammar, @body; else it is free.
    """

    form: ToolFormat | None = None
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    must_call: bool = False
    one_call: bool = False
    marks: ReasoningMarks | None = None
    is_reasoning: bool = False
    has_body: bool = False


def answer_grammar(shape: AnswerShape, token_ids: Mapping[str, int]) -> str:
    """Lark for all answers of a shape. token_ids: texts that are one token for llguidance, such as "<tool_call>"."""
    return _Lark(shape, token_ids).text()


def token_marks(tokenizer: Any) -> dict[str, int]:
    """The texts that llguidance takes for one token only: special tokens, and added ones in angle brackets."""
    return {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content.startswith("<") and token.content.endswith(">"))
    }


class _Lark:
    """Builds the grammar. Each method returns the right side of a rule, or writes rules."""

    def __init__(self, shape: AnswerShape, token_ids: Mapping[str, int]) -> None:
        self._shape = shape
        self._token_ids = token_ids
        marks = sorted(token_ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, marks)) + ")") if marks else None
        self._rules: list[str] = []

    def text(self) -> str:
        shape = self._shape
        answers = [] if shape.must_call else [f"@{BODY}" if shape.has_body else self._free_text()]
        if shape.form is not None:
            answers.append(self._calls(shape.form))
        self._rules += [f"TEXT: {_TEXT}", r"BLANKS: /[ \n]{1,4}/"]
        return "\n".join([f"start: {self._reasoning()} ({' | '.join(answers)})", *self._rules]) + "\n"

    def _reasoning(self) -> str:
        marks = self._shape.marks
        if marks is None:
            return ""
        rest = f"{self._up_to(marks.close, 'reasoning')} BLANKS?"
        return rest if self._shape.is_reasoning else f"({self._literal(marks.open)} {rest})?"

    def _free_text(self) -> str:
        """Text that starts no call. Where text may precede calls, the rule for that text finds their mark."""
        form = self._shape.form
        starts = [] if form is None else form.answers(self._shape.schemas)
        if not starts:
            return "TEXT"
        marks = self._shape.marks
        if marks is not None and marks.open not in self._token_ids:
            starts.append(marks.open)
        listed = "|".join(re.escape(start).replace("/", r"\/") for start in starts)
        self._rules.append(f"NO_CALL: /([^ \\n](.|\\n)*)?/ & ~/({listed})(.|\\n)*/")
        return "BLANKS? NO_CALL"

    def _calls(self, form: ToolFormat) -> str:
        shape = self._shape
        for i, schema in enumerate(shape.schemas.values()):
            self._rules.append(f"rest_{i}: arguments_{i} {self._literal(form.end)}")
            self._rules.append(argument_rules(form.arguments, f"arguments_{i}", schema).rstrip())
        self._rules.append(shared_rules(form.arguments).strip())
        if form.is_whole_answer:
            bare = f"({self._literal(form.bare_mark)})? " if form.bare_mark in self._token_ids else ""
            first = f"BLANKS? {bare}({self._call(form.opening + form.begin)})"
        elif shape.must_call or shape.has_body:
            first = f"({self._call(form.opening + form.begin)})"
        else:
            begin = (form.opening + form.begin).removeprefix(form.mark)
            first = f"{self._up_to(form.mark, 'before_calls')} ({self._call(begin)})"
        more = "" if shape.one_call else f"({self._call(form.separator + form.begin)})*"
        return f"{first} {more} {self._literal(form.closing)}"

    def _call(self, begin: str) -> str:
        """Alternatives: a call of each tool. The name is one lexeme with the text before it, as in NO_CALL."""
        form = self._shape.form
        assert form is not None
        return " | ".join(
            f"{self._literal(begin + name + form.middle)} rest_{i}" for i, name in enumerate(self._shape.schemas)
        )

    def _up_to(self, mark: str, rule: str) -> str:
        """Free text that ends with a mark."""
        self._rules.append(f"{rule}[lazy]: TEXT {json.dumps(mark, ensure_ascii=False)}")
        token_id = self._token_ids.get(mark)
        return rule if token_id is None else f"(TEXT <[{token_id}]> | {rule})"

    def _literal(self, text: str) -> str:
        """A fixed text, its marks as tokens."""
        pieces = [text] if self._split is None else self._split.split(text)
        return " ".join(
            f"<[{self._token_ids[piece]}]>" if piece in self._token_ids else json.dumps(piece, ensure_ascii=False)
            for piece in pieces
            if piece
        )
