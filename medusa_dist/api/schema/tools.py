"""Models of tools, tool_choice and the tool calls of a history, and what a request asks for with them.

Owns these fields, from types to meaning. Not here: how calls are written and read (text/tools/), JSON schemas
(json_schema.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from medusa_dist.api.conditions import SET, absent, conditions, has
from medusa_dist.api.schema.fields import refuse_other_types
from medusa_dist.api.schema.strict_model import Body, Text
from medusa_dist.errors import RequestError
from medusa_dist.json_schema import enforceable

MAX_TOOLS = 128  # as OpenAI
_NO_PARAMETERS = {"type": "object", "properties": {}}
FunctionName = Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


def only_functions(data: Any, where: str) -> Any:
    """The data of a tool or call. Raises RequestError, naming the field `where`, if it has another type."""
    return refuse_other_types(data, ("function",), where, "use type function", where)


class Function(Body):
    """What the model may call."""

    place = "tools[].function."
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="a JSON schema of an object; enforced")
    strict: bool | None = Field(default=None, description="the schema is always enforced")


class Tool(Body):
    """One tool."""

    place = "tools[]."
    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _function(cls, data: Any) -> Any:
        return only_functions(data, "tools")


class FunctionChoice(Body):
    """The function of a named choice."""

    place = "tool_choice.function."
    name: FunctionName


class NamedTool(Body):
    """A tool by its name."""

    place = "tool_choice.allowed_tools.tools[]."
    type: Literal["function"]
    function: FunctionChoice


class AllowedTools(Body):
    """A choice among some of the tools."""

    place = "tool_choice.allowed_tools."
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class ChoiceObject(Body):
    """A tool that must be called, or the tools that may be."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            {
                "anyOf": [
                    {**has(type={"const": kind}, **{kind: SET}), "allOf": [absent(other)]}
                    for kind, other in (("function", "allowed_tools"), ("allowed_tools", "function"))
                ]
            }
        )
    )
    place = "tool_choice."
    type: Literal["function", "allowed_tools"]
    function: FunctionChoice | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="after")
    def _by_type(self) -> Self:
        other = "allowed_tools" if self.type == "function" else "function"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise RequestError(f"tool_choice of type {self.type!r} needs {self.type}, and nothing else", "tool_choice")
        return self


ToolChoice = Literal["none", "auto", "required"] | ChoiceObject


class ReplayedFunction(Body):
    """A call of a history. arguments: JSON text, as it was answered."""

    place = "messages[].tool_calls[].function."
    name: Text
    arguments: Text | None = ""

    @property
    def values(self) -> dict[str, Any]:
        """The arguments. Raises RequestError unless they are a JSON object."""
        try:
            values = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise RequestError(f"messages[].tool_calls[].function.arguments is not JSON: {error}", "messages") from None
        if not isinstance(values, dict):
            raise RequestError("messages[].tool_calls[].function.arguments must be a JSON object", "messages")
        return values


class ReplayedCall(Body):
    """A tool call of an assistant message."""

    place = "messages[].tool_calls[]."
    id: Text | None = None
    type: Literal["function"] = "function"
    function: ReplayedFunction
    index: int | None = Field(default=None, description="a label of streamed calls, no effect")

    @model_validator(mode="before")
    @classmethod
    def _function(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if value is not None}
        return only_functions(data, "messages[].tool_calls")

    def turn(self) -> dict[str, Any]:
        """The call as chat templates get it: arguments as an object. Raises RequestError unless they are one."""
        function = {"name": self.function.name, "arguments": self.function.values}
        return {"id": self.id or "", "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class AskedTools:
    """What a request asks for.

    shown: the tools as the template renders them. schemas: of the parameters, in enforceable keywords, of the tools
    that may be called. must_call: at least one call. one_call: at most one.
    """

    shown: Sequence[Mapping[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]]
    must_call: bool
    one_call: bool


def asked_tools(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel_tool_calls: bool | None
) -> AskedTools | None:
    """The tools of a request; None: it has none, or says that none may be called, so that they are not shown.

    Raises RequestError for two tools of one name, a choice of a tool that does not exist, or a schema that cannot be
    enforced.
    """
    functions = {tool.function.name: tool.function for tool in tools or ()}
    if len(functions) < len(tools or ()):
        raise RequestError("tools: two tools have the same name", "tools")
    chosen, must_call = _chosen(choice, functions)
    if not functions or choice == "none":
        return None
    schemas = {name: _parameters(functions[name]) for name in chosen}
    shown = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    is_named = isinstance(choice, ChoiceObject) and choice.function is not None
    return AskedTools(shown, schemas, must_call, one_call=is_named or parallel_tool_calls is False)


def _chosen(choice: ToolChoice | None, functions: Mapping[str, Function]) -> tuple[list[str], bool]:
    """The names that may be called, and whether one must be."""
    if not isinstance(choice, ChoiceObject):
        if choice == "required" and not functions:
            raise RequestError('tool_choice: "required" needs tools', "tool_choice")
        return list(functions), choice == "required"
    if choice.function is not None:
        names, must_call = [choice.function.name], True
    else:
        assert choice.allowed_tools is not None
        names = list(dict.fromkeys(tool.function.name for tool in choice.allowed_tools.tools))
        must_call = choice.allowed_tools.mode == "required"
    for name in names:
        if name not in functions:
            raise RequestError(f"tool_choice: there is no tool {name!r} in tools", "tool_choice")
    return names, must_call


def _parameters(function: Function) -> dict[str, Any]:
    """The schema of a function's parameters."""
    schema = function.parameters or _NO_PARAMETERS
    where = f"tools: {function.name}"
    if schema.get("type", "object") != "object":
        raise RequestError(f'{where}: parameters must be a JSON schema with "type": "object"', "tools")
    try:
        found = {"type": "object"} | enforceable(schema, "tools")
        missing = set(found.get("required", ())) - set(found.get("properties", found.get("required", ())))
        if missing and "additionalProperties" not in found and "patternProperties" not in found:
            raise RequestError(f"required: there is no property {min(missing)!r}", "tools")
        return found
    except RequestError as error:
        reason = error.message.removeprefix("tools: ")
        raise RequestError(f"{where}: parameters: {reason}", "tools", error.code) from None
