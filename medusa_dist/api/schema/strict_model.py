"""Body: what all pydantic models of requests have in common.

Owns strictness and the answer to unknown fields. Values are taken strictly: "5" is no number, 1 is no boolean. Not
here: the models themselves (schema.py, form.py).
"""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from medusa_dist.api.schema.fields import refuse_unknown


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, which JSON lets through as \\ud800; no tokenizer takes it
        raise ValueError("the text holds a lone surrogate, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]


class Body(BaseModel):
    """Base of all request models: strict, and an unknown field is answered by name."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        if isinstance(data, dict):
            names = [about.alias or name for name, about in cls.model_fields.items()]
            refuse_unknown(names, data, cls.place)
        return data
