"""docs/config.md, written from the Config tree itself: `python -m medusa_dist.jobs.config_docs > docs/config.md`.

Owns the page's form. Not here: the keys and their words (config.py).
"""

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medusa_dist.config import Config

_HEAD = """# Keys of a service

What may stand under `args:` of an application in a Serve config, and as keyword arguments of `LLM`. Unknown keys are
errors. Written from the code; `make docs` writes it anew.

| key | type | default | what it is |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in rows(Config, ""))


def rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str, str]]:
    """One row per key, nested ones with dots."""
    found: list[tuple[str, str, str, str]] = []
    for name, field in model.model_fields.items():
        nested = _nested(field)
        if nested is not None:
            found += rows(nested, f"{prefix}{name}.")
        else:
            found.append((f"`{prefix}{name}`", f"`{_type(field)}`", _default(field), _escaped(field.description or "")))
    return found


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a nested group of keys, also where the group may be left out."""
    options: list[Any] = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace(" | ", " or ")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "`none`" if field.default is None else f"`{field.default}`".lower()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
