"""Models of response_format (OpenAI) and structured_outputs (vLLM), and the grammar of a request.

Owns these fields and the guided ones, from types to meaning. Not here: grammars (medusa_dist/grammar.py).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from medusa_dist.api.conditions import SET, TRUE, absent, conditions, exactly_one, has
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar

_FORMAT, _OUTPUTS = "response_format", "structured_outputs"


class JsonSchema(Body):
    """OpenAI's wrapper around a JSON schema. The schema is enforced whether strict or not."""

    place = "response_format.json_schema."
    name: Text | None = Field(default=None, description="a label, no effect")
    description: Text | None = Field(
        default=None, description="a label, not shown to the model; describe the output in the prompt"
    )
    content: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="the schema is always enforced")


class ResponseFormat(Body):
    """Value of `response_format`."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            {
                "anyOf": [
                    {**absent("json_schema"), "allOf": [has(type={"enum": ["text", "json_object"]})]},
                    has(type={"const": "json_schema"}, json_schema=SET),
                ]
            }
        )
    )
    place = "response_format."
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RequestError(
                f'{_FORMAT}.json_schema and type "json_schema" require each other; the type is "{self.type}"',
                _FORMAT,
            )
        return self

    def grammar(self) -> Grammar | None:
        """The requested grammar; None: any text."""
        if self.json_schema is not None:
            return Grammar.json_schema(self.json_schema.content, _FORMAT)
        return Grammar.json(_FORMAT) if self.type == "json_object" else None


_KINDS = ("json", "regex", "choice", "grammar")
_ONE_KIND = {
    "anyOf": [
        {"properties": {"json_object": {"enum": [None, False]}}, "allOf": [exactly_one(*_KINDS)]},
        {**has(json_object=TRUE), "allOf": [absent(*_KINDS)]},
    ]
}


class StructuredOutputs(Body):
    """Value of `structured_outputs`: exactly one kind of grammar."""

    model_config = ConfigDict(json_schema_extra=conditions(_ONE_KIND))
    place = "structured_outputs."
    content: dict[str, Any] | Text | None = Field(
        default=None, alias="json", description="a JSON schema, as an object or as text"
    )
    regex: Text | None = Field(default=None, description="must match the whole output; Rust syntax, no look-around")
    choice: list[Text] | None = Field(default=None, description="the output is one of these texts")
    grammar_text: Text | None = Field(default=None, alias="grammar", description="llguidance's Lark syntax, or GBNF")
    json_object: bool | None = Field(default=None, description="any JSON object")

    @model_validator(mode="after")
    def _one(self) -> Self:
        kinds = (self.content, self.regex, self.choice, self.grammar_text, self.json_object or None)
        if sum(kind is not None for kind in kinds) != 1:
            raise RequestError(f"{_OUTPUTS} needs exactly one of json, regex, choice, grammar, json_object", _OUTPUTS)
        return self

    def grammar(self) -> Grammar:
        """The requested grammar."""
        if self.content is not None:
            return Grammar.json_schema(self.content, _OUTPUTS)
        if self.regex is not None:
            return Grammar.regex(self.regex, _OUTPUTS)
        if self.choice is not None:
            return Grammar.choice(self.choice, _OUTPUTS)
        if self.grammar_text is not None:
            return Grammar.ebnf(self.grammar_text, _OUTPUTS)
        return Grammar.json(_OUTPUTS)


_GUIDED: Mapping[str, Callable[[Any, str], Grammar]] = {
    "guided_json": Grammar.json_schema,
    "guided_regex": Grammar.regex,
    "guided_choice": Grammar.choice,
    "guided_grammar": Grammar.ebnf,
}


def asked_grammar(body: Any) -> Grammar | None:
    """The grammar of a request body; its param is the field that asks for it.

    Raises RequestError if two fields ask for one, or for an invalid grammar.
    """
    found = [
        None if body.response_format is None else body.response_format.grammar(),
        None if body.structured_outputs is None else body.structured_outputs.grammar(),
        *(make(getattr(body, name), name) for name, make in _GUIDED.items() if getattr(body, name) is not None),
    ]
    asked = [grammar for grammar in found if grammar is not None]
    if len(asked) > 1:
        first, second = asked[0].param, asked[1].param
        raise RequestError(f"{first} and {second} both constrain the output; remove one of them", second)
    return asked[0] if asked else None
