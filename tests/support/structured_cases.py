"""GrammarCompiler, and what a finished text must be, for tests of structured output."""

import json
import re
from collections.abc import Callable

import jsonschema

from medusa_dist import Grammar
from medusa_dist.outputs import Output
from medusa_dist.text.tools.answer_reader import AnswerReader
from medusa_dist.text.tools.formats import ToolFormat
from medusa_dist.text.tools.tool_grammar import AnswerShape, answer_grammar, token_marks
from tests.support.tiny_tokenizers import json_tokenizer
from tests.support.tool_cases import collected

CHOICES = ["true", "null", "ab", "ab ab", "tru"]


TOKENIZER = json_tokenizer()  # 29 of the model's 31 ids


SCHEMA = {
    "type": "object",
    "properties": {
        "ab": {"type": "array", "items": {"enum": ["a", 1, True, None]}, "minItems": 1, "maxItems": 3},
        "n": {"type": "integer", "minimum": -3, "maximum": 31},
    },
    "required": ["ab", "n"],
    "additionalProperties": False,
}


def fits_schema(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


# Tool calls with the few characters of the tokenizer, or one of the choices.
TOOL_FORMAT = ToolFormat(
    name="tiny", opening="[a]", begin='{"b":"', middle='","a":', end="}", separator=",", closing="[b]"
)
TOOLS = {
    "ab": {"type": "object", "properties": {"n": {"enum": [1, 2, None]}}, "required": ["n"]},
    "tru": {"type": "object", "properties": {"ab": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}}},
}


def is_choice_or_calls(text: str) -> bool:
    reader = AnswerReader(form=TOOL_FORMAT, schemas=TOOLS)
    _, content, calls = collected(reader.feed(text, is_last=True))
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), TOOLS[name])
    return (not content and bool(calls)) or content in CHOICES


TOOL_GRAMMAR = answer_grammar(AnswerShape(form=TOOL_FORMAT, schemas=TOOLS, has_body=True), token_marks(TOKENIZER))

GRAMMARS: list[tuple[Grammar | None, Callable[[str], object]]] = [
    (Grammar.json_schema(SCHEMA), fits_schema),
    (None, lambda _: True),
    (Grammar.json(), lambda text: isinstance(json.loads(text), dict)),
    (Grammar.regex("[ab]{2,6}(-[0-3]+)?"), re.compile("[ab]{2,6}(-[0-3]+)?").fullmatch),
    (Grammar.choice(CHOICES), CHOICES.__contains__),
    (Grammar.answer(TOOL_GRAMMAR, "tools", Grammar.choice(CHOICES)), is_choice_or_calls),
    (Grammar.ebnf('root ::= "[" root "]" | [0-3]+'), re.compile(r"\[*[0-3]+\]*").fullmatch),
]


def text_of(output: Output) -> str:
    return str(TOKENIZER.decode(output.token_ids, skip_special_tokens=True))
