"""Body: the strict base class of all request models.

Owns strict validation and the error for unknown fields. Not here: the models themselves (requests.py,
structured_outputs.py). Values are not coerced: "5" is not a number, 1 is not a boolean.
"""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from medusa_dist.api.schema.fields import refuse_unknown


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON allows half a pair as \\ud800, but no tokenizer accepts it
        raise ValueError("the text contains a lone surrogate, which is not a valid character") from None
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]


class Body(BaseModel):
    """Base of all request models: strict; an unknown field is an error that names it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        if isinstance(data, dict):
            names = [about.alias or name for name, about in cls.model_fields.items()]
            refuse_unknown(names, data, cls.place)
        return data
