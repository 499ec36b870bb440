"""Generates docs from code (`make docs`): docs/config.md, tables of sampling fields and message keys, file tree.

Owns their format. Not here: keys (config.py), sampling fields (sampling_fields.py), keys of messages
(api/schema/fields.py), a file's line (its docstring).
Works on a checkout, not on an installed package.
"""

import ast
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medusa_dist.api.schema.fields import MESSAGE_FIELDS, PART_FIELDS, Rule
from medusa_dist.config import Config
from medusa_dist.sampling_fields import FIELDS, SamplingField

ROOT = Path(__file__).parents[2]
SAMPLING_MARKS = ("<!-- sampling fields -->\n", "<!-- end of sampling fields -->\n")
MESSAGE_MARKS = ("<!-- message keys -->\n", "<!-- end of message keys -->\n")
TREE_MARKS = ("<!-- files -->\n", "<!-- end of files -->\n")
_HEAD = """# Keys of a service

Keys under `args:` of an application in a Serve config, and keyword arguments of `LLM` (except the service keys
`max_queued`, `log_format`, `tracing`, `page`, `http`, `files`, `autoscaling` and `resources.front_cpus`, which it
refuses).
Unknown keys are errors. This page is generated from the code by `make docs`.

| key | type | default | description |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in rows(Config, ""))


def rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str, str]]:
    """One row per key; nested keys with dots."""
    found: list[tuple[str, str, str, str]] = []
    for name, field in model.model_fields.items():
        nested = _nested(field)
        if nested is not None:
            found += rows(nested, f"{prefix}{name}.")
        else:
            found.append((f"`{prefix}{name}`", f"`{_type(field)}`", _default(field), _escaped(field.description or "")))
    return found


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a nested group of keys, including optional groups."""
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


def sampling_table() -> str:
    """The table of sampling fields, for docs/requests.md."""
    head = "| field | default | range | beam search |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{name}` | {_plain(f.default)} | {_range(f)} | {_beams(f)} |\n" for name, f in FIELDS.items()
    )


def _plain(value: Any) -> str:
    if value is None or value == ():
        return "none" if value is None else "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(field: SamplingField) -> str:
    return "" if field.low is None or field.high is None else f"{_number(field.low)} to {_number(field.high)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _beams(field: SamplingField) -> str:
    return "yes" if field.no_beams is None else f"no: {field.no_beams}"


def message_table() -> str:
    """The table of keys of messages and content parts, for docs/requests.md; keys with one rule share a row."""
    lines = ["| key | in | use | note |", "|---|---|---|---|"]
    for place, rules in (("message", MESSAGE_FIELDS), ("part", PART_FIELDS)):
        names: dict[tuple[str, str], list[str]] = {}
        for name, rule in rules.items():
            names.setdefault((str(rule.use), _note(rule)), []).append(f"`{name}`")
        lines += [f"| {', '.join(keys)} | {place} | {use} | {note} |" for (use, note), keys in names.items()]
    return "\n".join(lines) + "\n"


def _note(rule: Rule) -> str:
    neutral = " or ".join(f"`{json.dumps(value)}`" for value in rule.neutral)
    return rule.note + (f"; {neutral} is taken" if neutral else "")


def file_tree() -> str:
    """One line per folder and file of the package: name and first line of the docstring."""
    return "```\n" + "\n".join(_tree(ROOT / "medusa_dist", 0)) + "\n```\n"


def _tree(folder: Path, depth: int) -> list[str]:
    """The line of a folder, then its files, then its subfolders."""
    lines = [_line(folder / "__init__.py", depth, f"{folder.name}/")]
    lines += [_line(file, depth + 1, file.name) for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines += _tree(inner, depth + 1)
    return lines


def _line(file: Path, depth: int, name: str) -> str:
    words = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0].rstrip(".")
    return f"{'  ' * depth + name:<34} {words}"


def with_tree(text: str) -> str:
    """docs/architecture.md with the tree inserted between its marks."""
    return _between(TREE_MARKS, text, file_tree())


def with_sampling(text: str) -> str:
    """docs/requests.md with the table of sampling fields inserted between its marks."""
    return _between(SAMPLING_MARKS, text, sampling_table())


def with_messages(text: str) -> str:
    """docs/requests.md with the table of message keys inserted between its marks."""
    return _between(MESSAGE_MARKS, text, message_table())


def _between(marks: tuple[str, str], text: str, new: str) -> str:
    begin, end = (text.index(mark) for mark in marks)
    return text[: begin + len(marks[0])] + new + text[end:]


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(page())
    requests = ROOT / "docs" / "requests.md"
    requests.write_text(with_messages(with_sampling(requests.read_text())))
    architecture = ROOT / "docs" / "architecture.md"
    architecture.write_text(with_tree(architecture.read_text()))
