"""Parts of an answer, in the order in which the model writes them: reasoning, content, tool calls.

Owns these types. Not here: reading them from a text (answer_reader.py).
"""

from dataclasses import dataclass
from typing import Protocol


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


class PartReader(Protocol):
    """Splits the text of one answer, special tokens included, into its parts."""

    def feed(self, text: str, is_last: bool = False) -> list[Part]:
        """The parts that more text completes. is_last: no text follows, so nothing is held back."""
