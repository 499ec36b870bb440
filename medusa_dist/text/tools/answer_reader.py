"""AnswerReader: splits an answer into reasoning, content and tool calls, while its text grows.

Owns where each of them starts and ends. Not here: the text of calls (call_reader.py), formats and marks (formats.py,
reasoning.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

from medusa_dist.text.tools.call_reader import CallReader
from medusa_dist.text.tools.formats import ToolFormat
from medusa_dist.text.tools.parts import Content, Part, Reasoning
from medusa_dist.text.tools.reasoning import ReasoningMarks


class AnswerReader:
    """Takes the text of one answer, special tokens included, in pieces of any size.

    marks: of the reasoning; None: the model does not reason. is_reasoning: the prompt already opened the reasoning.
    form, schemas: the format of calls, and the JSON schemas of the tools' parameters; None: there are no calls.
    White space around the reasoning belongs to neither part. The pieces' sizes do not change the parts' texts.
    """

    def __init__(
        self,
        marks: ReasoningMarks | None = None,
        is_reasoning: bool = False,
        form: ToolFormat | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._marks = marks
        self._form = form
        self._schemas = schemas or {}
        self._calls: CallReader | None = None
        self._waiting = ""
        self._has_reasoning = is_reasoning  # or had
        self._is_fresh = True  # no text of the reasoning was read yet
        self._mode: Callable[[list[Part], bool], bool] = self._read_reasoning if is_reasoning else self._read_start

    @property
    def num_calls(self) -> int:
        """Calls so far, the last of which may be incomplete."""
        return 0 if self._calls is None else self._calls.num_calls

    def feed(self, text: str, is_last: bool = False) -> list[Part]:
        """The parts that more text completes. is_last: no text follows, so nothing is held back."""
        self._waiting += text
        parts: list[Part] = []
        while self._mode(parts, is_last):
            pass
        return parts

    # Each mode reads what it can, and returns whether another mode goes on with the rest.

    def _read_start(self, parts: list[Part], is_last: bool) -> bool:
        """At the start of the answer, or behind the reasoning: what follows is known by its first characters."""
        start = self._waiting.lstrip()
        opening = "" if self._marks is None or self._has_reasoning else self._marks.open
        begins = [] if self._form is None else self._form.answers(self._schemas)
        if not is_last and any(text.startswith(start) for text in (*begins, opening) if text):
            return False
        if self._has_reasoning and not start:
            return False
        if opening and start.startswith(opening):
            self._waiting, self._has_reasoning, self._mode = start[len(opening) :], True, self._read_reasoning
            return True
        found = next((text for text in begins if start.startswith(text)), None)
        if found is not None:
            assert self._form is not None
            self._waiting = start.removeprefix(self._form.bare_mark)
            self._start_calls(self._form)
            return True
        if self._has_reasoning:
            self._waiting = start
        self._mode = self._read_text
        return True

    def _read_reasoning(self, parts: list[Part], is_last: bool) -> bool:
        assert self._marks is not None
        text, is_over = self._up_to(self._marks.close, is_last)
        if self._is_fresh:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            parts.append(Reasoning(kept))
            self._is_fresh = False
        if is_over:
            self._waiting = self._waiting[len(self._marks.close) :]
            self._mode = self._read_start
        elif not self._is_fresh:
            self._waiting = text[len(kept) :] + self._waiting
        return is_over

    def _read_text(self, parts: list[Part], is_last: bool) -> bool:
        mark = "" if self._form is None or self._form.is_whole_answer else self._form.mark
        text, is_over = self._up_to(mark, is_last)
        if text:
            parts.append(Content(text))
        if is_over:
            assert self._form is not None
            self._start_calls(self._form)
        return is_over

    def _start_calls(self, form: ToolFormat) -> None:
        self._calls = CallReader(form, self._schemas)
        self._mode = self._read_calls

    def _read_calls(self, parts: list[Part], is_last: bool) -> bool:
        """To the end of the answer. Text that is no call becomes content."""
        assert self._calls is not None
        text, self._waiting = self._waiting, ""
        try:
            self._calls.feed(text, parts)
        except ValueError:
            self._waiting, self._form, self._mode = self._calls.unread, None, self._read_text
            return True
        return False

    def _up_to(self, mark: str, is_last: bool) -> tuple[str, bool]:
        """Take the text before the mark, which stays, and whether it is there. What may be its start stays, too."""
        at = self._waiting.find(mark) if mark else -1
        is_there = at >= 0
        if not is_there:
            at = len(self._waiting) - (0 if is_last else _num_open(self._waiting, mark))
        text, self._waiting = self._waiting[:at], self._waiting[at:]
        return text, is_there


def _num_open(text: str, mark: str) -> int:
    """Number of characters at the end of a text that may be the start of a mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
