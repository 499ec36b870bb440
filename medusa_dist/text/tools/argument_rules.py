"""Lark rules for the arguments of a call: JSON, Python keyword arguments, XML elements.

Owns how a JSON schema constrains the arguments in each format. Not here: the texts around them (tool_grammar.py),
reading them (arguments.py). A Python argument that is a list or an object is any literal of that kind, and an XML
argument that is a text is any text: these formats have no schema language of their own.
"""

import json
from collections.abc import Mapping
from typing import Any

from medusa_dist.text.tools.arguments import is_text, properties_of
from medusa_dist.text.tools.formats import Arguments

Schema = Mapping[str, Any]

JSON_BLANKS = r" |\n[ \t]{0,20}"  # white space between JSON tokens: without a limit, small models fill lines with it
EMPTY = '""'
_PYTHON_ANY = """
py_any: py_text | %json {"type": "number"} | "True" | "False" | "None" | py_list | py_dict
py_text: %json {"type": "string"}
py_list: "[" (py_any (", " py_any)*)? "]"
py_dict: "{" (py_text ": " py_any (", " py_text ": " py_any)*)? "}"
"""


def argument_rules(kind: Arguments, name: str, schema: Schema) -> str:
    """Rules that define `name`: the arguments that match a schema. Lark, one rule per line.

    schema: of the parameters object; at the top level, properties that it does not list are not allowed.
    """
    if kind == "json":
        return f"{name}: {_json(_closed(schema))}\n"
    return _python_rules(name, schema) if kind == "python" else _xml_rules(name, schema)


def shared_rules(kind: Arguments) -> str:
    """Rules that the arguments of all tools use."""
    return _PYTHON_ANY if kind == "python" else ""


def _closed(schema: Schema) -> Schema:
    """The same, without properties that the model would have to invent names for."""
    if "properties" not in schema and "anyOf" not in schema and "$ref" not in schema and "allOf" not in schema:
        return {"type": "object", "properties": {}, "additionalProperties": False} | dict(schema)
    return {"additionalProperties": False} | dict(schema) if "properties" in schema else schema


def _json(schema: Schema) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_BLANKS}}, ensure_ascii=False)


def _python_rules(name: str, schema: Schema) -> str:
    """name=value, separated by commas, in the order of the schema; optional ones may be left out."""
    properties, required = properties_of(schema), schema.get("required") or ()
    rules, last = "", len(properties)
    # first_i: arguments from the i-th on, none written yet; more_i: some are.
    for i, (key, value) in enumerate(properties.items()):
        rules += f"{name}_{i}: {json.dumps(key + '=', ensure_ascii=False)} ({_python_value(value)})\n"
        skip_first, skip_more = (
            (f" | {name}_first_{i + 1}", f" | {name}_more_{i + 1}") if key not in required else ("", "")
        )
        rules += f"{name}_first_{i}: {name}_{i} {name}_more_{i + 1}{skip_first}\n"
        rules += f'{name}_more_{i}: ", " {name}_{i} {name}_more_{i + 1}{skip_more}\n'
    return f"{name}: {name}_first_0\n{rules}{name}_first_{last}: {EMPTY}\n{name}_more_{last}: {EMPTY}\n"


def _python_value(schema: Any) -> str:
    """The right side of a rule for one value."""
    if not isinstance(schema, Mapping):
        return "py_any"
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return " | ".join(_python_value(branch) for branch in schema[key])
    if "enum" in schema or "const" in schema:
        return " | ".join(
            json.dumps(_literal(v), ensure_ascii=False) for v in schema.get("enum", [schema.get("const")])
        )
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return " | ".join(_python_kind(kind, schema) for kind in kinds)


def _python_kind(kind: Any, schema: Schema) -> str:
    if kind in ("string", "integer", "number"):
        return "%json " + json.dumps({**schema, "type": kind}, ensure_ascii=False)
    known = {"boolean": '"True" | "False"', "null": '"None"', "array": "py_list", "object": "py_dict"}
    return known.get(kind, "py_any")


def _literal(value: Any) -> str:
    """A JSON value as Python writes it, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _xml_rules(name: str, schema: Schema) -> str:
    """<parameter=name>, the value on lines of its own, </parameter>, in the order of the schema."""
    properties, required = properties_of(schema), schema.get("required") or ()
    rules, end = "", "\n</parameter>\n"
    for i, (key, value) in enumerate(properties.items()):
        begin = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
        if isinstance(value, Mapping) and is_text(value):
            listed = value.get("enum", [value["const"]] if "const" in value else None)
            if listed is None:
                rules += f"{name}_text_{i}[lazy]: /(.|\\n)*/ {json.dumps(end)}\n{name}_{i}: {begin} {name}_text_{i}\n"
                continue
            texts = " | ".join(json.dumps(text + end, ensure_ascii=False) for text in listed)
        else:
            texts = f"{_json(value if isinstance(value, Mapping) else {})} {json.dumps(end)}"
        rules += f"{name}_{i}: {begin} ({texts})\n"
    present = [f"{name}_{i}" + ("" if key in required else "?") for i, key in enumerate(properties)]
    return f"{name}: {' '.join(present or [EMPTY])}\n{rules}"
