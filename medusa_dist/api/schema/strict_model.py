"""Body: the strict base class of all request models.

Owns strict validation and the error for unknown fields. Not here: the models themselves (requests.py,
structured_outputs.py). Values are not coerced: "5" is not a number, 1 is not a boolean.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from medusa_dist.api.schema.fields import refuse_unknown


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON allows half a pair as \\ud800, but no tokenizer accepts it
        raise ValueError("the text contains a lone surrogate, which is not a valid character") from None
    return text


def _is_false(value: Any) -> Any:
    if value is not False:
        raise ValueError("must be false")
    return value


OnlyFalse = Annotated[Literal[False], BeforeValidator(_is_false)]  # pydantic's Literal alone accepts 0
Text = Annotated[str, AfterValidator(_is_unicode)]


_BOUNDS = {"ge": "minimum", "le": "maximum"}


def _in_json_schema_words(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_in_json_schema_words(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_bound = {key: key in _BOUNDS and isinstance(value, (int, float)) for key, value in schema.items()}
    return {_BOUNDS[key] if is_bound[key] else key: _in_json_schema_words(value) for key, value in schema.items()}


class Body(BaseModel):
    """Base of all request models: strict; an unknown field is an error that names it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())
    place: ClassVar[str] = ""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The model's JSON schema; pydantic writes bounds behind a validator under its own names."""
        schema = handler(core)
        named = handler.resolve_ref_schema(schema)
        named["properties"] = _in_json_schema_words(named.get("properties", {}))
        return schema

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        if isinstance(data, dict):
            names = [about.alias or name for name, about in cls.model_fields.items()]
            refuse_unknown(names, data, cls.place)
        return data
