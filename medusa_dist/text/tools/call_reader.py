"""CallReader: the tool calls of an answer, while their text grows.

Owns the order of the parts of a call. Not here: the texts of a format (formats.py), the arguments (arguments.py), the
text around calls (answer_reader.py). A grammar makes the model write calls in exactly this form (tool_grammar.py), so
a text that ends inside a call was cut by a limit, and what is known of the call is passed on.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from medusa_dist.text.tools.arguments import ArgumentsReader, arguments_reader
from medusa_dist.text.tools.formats import ToolFormat
from medusa_dist.text.tools.parts import CallArguments, CallStart, Part

_LONGEST_NAME = 256


class _Awaited(Enum):
    FIRST = auto()  # call
    NAME = auto()
    ARGUMENTS = auto()
    END = auto()  # of a call
    NEXT = auto()  # call, or the closing text, or the end of the answer
    NOTHING = auto()


class CallReader:
    """Reads calls from the text that starts with the first one.

    schemas: the JSON schema of the parameters, by tool. num_calls: calls whose name is known.
    """

    def __init__(self, form: ToolFormat, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._form = form
        self._schemas = schemas
        self._awaited = _Awaited.FIRST
        self._arguments: ArgumentsReader | None = None
        self._waiting = ""  # text that was not read yet
        self._before_name = ""  # text that was read for a call whose name is not known yet
        self.num_calls = 0

    @property
    def unread(self) -> str:
        """The text that became no part of a call."""
        return self._before_name + self._waiting

    def feed(self, text: str, parts: list[Part]) -> None:
        """Append the parts that more text completes. Raises ValueError for a text that is no call of this format."""
        self._waiting += text
        while self._step(parts):
            pass

    def _step(self, parts: list[Part]) -> bool:
        """Read one thing; False: more text is needed."""
        form = self._form
        match self._awaited:
            case _Awaited.FIRST:
                return self._take({form.opening + form.begin: _Awaited.NAME})
            case _Awaited.NAME:
                name, found, rest = self._waiting.partition(form.middle)
                if not found:
                    if len(name) > _LONGEST_NAME:
                        raise ValueError("a call has no name")
                    return False
                if name not in self._schemas:
                    raise ValueError(f"there is no tool {name[:40]!r}")
                parts.append(CallStart(self.num_calls, name))
                self.num_calls, self._before_name = self.num_calls + 1, ""
                self._arguments = arguments_reader(form.arguments, self._schemas[name])
                self._waiting, self._awaited = rest, _Awaited.ARGUMENTS
                return True
            case _Awaited.ARGUMENTS:
                assert self._arguments is not None
                if not self._waiting:
                    return False
                known, self._waiting = self._arguments.feed(self._waiting)
                if known:
                    parts.append(CallArguments(self.num_calls - 1, known))
                if self._arguments.is_over:
                    self._awaited = _Awaited.END
                return self._arguments.is_over
            case _Awaited.END:
                return self._take({form.end: _Awaited.NEXT})
            case _Awaited.NEXT:
                closing = {form.closing: _Awaited.NOTHING} if form.closing else {}
                return self._take({form.separator + form.begin: _Awaited.NAME} | closing)
            case _Awaited.NOTHING:
                return self._take({})

    def _take(self, texts: Mapping[str, _Awaited]) -> bool:
        """Read one of the texts and await what follows it; False while it may still come."""
        for text, then in texts.items():
            if self._waiting.startswith(text):
                self._waiting, self._awaited = self._waiting[len(text) :], then
                self._before_name = text if then is _Awaited.NAME else ""
                return True
        if not self._waiting.strip() or any(text.startswith(self._waiting) for text in texts):
            return False
        raise ValueError(f"expected {' or '.join(map(repr, texts)) or 'the end'}")
