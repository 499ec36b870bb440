"""Parts of an answer, in the order in which the model writes them: reasoning, content, tool calls.

Owns these types. Not here: reading them from a text (answer_reader.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More text of the reasoning before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins. index: 0 for the first call of the answer."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Reasoning | Content | CallStart | CallArguments
