"""GrammarCompiler, and what a finished text must be, for tests of structured output."""

import json
import re
from collections.abc import Callable

import jsonschema

from medusa_dist import Grammar
from medusa_dist.outputs import Output
from tests.support.tiny_tokenizers import json_tokenizer

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


GRAMMARS: list[tuple[Grammar | None, Callable[[str], object]]] = [
    (Grammar.json_schema(SCHEMA), fits_schema),
    (None, lambda _: True),
    (Grammar.json(), lambda text: isinstance(json.loads(text), dict)),
    (Grammar.regex("[ab]{2,6}(-[0-3]+)?"), re.compile("[ab]{2,6}(-[0-3]+)?").fullmatch),
    (Grammar.choice(CHOICES), CHOICES.__contains__),
    (Grammar.ebnf('root ::= "[" root "]" | [0-3]+'), re.compile(r"\[*[0-3]+\]*").fullmatch),
]


def text_of(output: Output) -> str:
    return str(TOKENIZER.decode(output.token_ids, skip_special_tokens=True))
