"""What is written in the docs from the code itself: docs/config.md and the README's file tree (`make docs`).

Owns the form of both. Not here: the keys and their words (config.py), the words on a file (its docstring).
Works on a checkout, not on an installed package.
"""

import ast
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medusa_dist.config import Config

ROOT = Path(__file__).parents[2]
README_MARKS = ("<!-- files -->\n", "<!-- end of files -->\n")
_TOP_FILES = (
    "app.py",
    "llm.py",
    "llm_backend.py",
    "cli.py",
    "cli_heads.py",
    "cli_train.py",
    "cli_parts.py",
    "config.py",
    "request.py",
    "grammar.py",
    "beam_fields.py",
    "errors.py",
)
_FOLDERS = ("jobs", "api", "serve", "engine", "medusa", "model", "ops")
_HEAD = """# Keys of a service

What may stand under `args:` of an application in a Serve config, and as keyword arguments of `LLM` (but for those of a
service: `max_queued`, `autoscaling` and `resources.front_cpus`, which it refuses). Unknown keys are
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


def file_tree() -> str:
    """One line per file of the package: its name and the first line of its docstring."""
    package = ROOT / "medusa_dist"
    lines = ["medusa_dist/", *(_line(package / name, 2) for name in _TOP_FILES)]
    for folder in _FOLDERS:
        lines.append(_line(package / folder / "__init__.py", 2, f"{folder}/"))
        files = sorted((package / folder).glob("*.py"))
        lines += [_line(file, 4) for file in files if file.name != "__init__.py"]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _line(file: Path, indent: int, name: str | None = None) -> str:
    words = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0].rstrip(".")
    return f"{' ' * indent}{name or file.name:<{24 - indent}}{words}"


def with_tree(readme: str) -> str:
    """The README with the tree between its marks."""
    begin, end = (readme.index(mark) for mark in README_MARKS)
    return readme[: begin + len(README_MARKS[0])] + file_tree() + readme[end:]


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(page())
    (ROOT / "README.md").write_text(with_tree((ROOT / "README.md").read_text()))
