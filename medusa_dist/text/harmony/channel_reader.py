"""ChannelReader: splits an answer in harmony into reasoning, content and tool calls, while its text grows.

Owns the marks and the headers. Not here: rendering (the chat template), what may come next (channel_grammar.py).
A message is header, <|message|>, text, and an end mark; the header names its channel, and for a call its recipient. The
last end mark ends the answer and is no part of its text. Source: OpenAI, "harmony response format".
"""

import re
from collections.abc import Collection

from medusa_dist.text.tools.parts import CallArguments, CallStart, Content, Part, Reasoning

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
FUNCTIONS = "functions."
_ENDS = (END, CALL, RETURN, START)
_CHANNEL_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(\S+?)(?=\s|<\||$)")


def is_harmony(chat_template: str, tokens: Collection[str]) -> bool:
    """Whether a chat template writes messages in channels, and the marks are tokens."""
    has_channels = all(text in chat_template for text in (START, CHANNEL, MESSAGE, "analysis", "final"))
    return has_channels and all(mark in tokens for mark in MARKS)


class ChannelReader:
    """Takes the text of one answer, special tokens included, in pieces of any size.

    names: of the tools; a message to another recipient is content. The prompt ends with the start of a message, so the
    text begins within a header.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = names
        self._waiting = ""
        self._kind: type[Reasoning | Content | CallArguments] | None = None  # of the open message; None: in a header
        self._is_new = {Reasoning: True, Content: True}  # no message of the kind had text yet
        self._has_text = False  # the open message
        self.num_calls = 0

    def feed(self, text: str, is_last: bool = False) -> list[Part]:
        """The parts that more text completes. is_last: no text follows."""
        self._waiting += text
        parts: list[Part] = []
        while self._read_header(parts, is_last) if self._kind is None else self._read_text(parts, is_last):
            pass
        return parts

    def _read_header(self, parts: list[Part], is_last: bool) -> bool:
        header, found, rest = self._waiting.partition(MESSAGE)
        if not found:
            if is_last and not any(mark in header for mark in MARKS) and header.strip():
                parts.append(Content(header))  # a text without any header
                self._waiting = ""
            return False
        channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
        name = recipient[1].removeprefix(FUNCTIONS) if recipient else ""
        self._waiting, self._has_text = rest, False
        if name in self._names:
            parts.append(CallStart(self.num_calls, name))
            self.num_calls, self._kind = self.num_calls + 1, CallArguments
        else:
            self._kind = Reasoning if channel is not None and channel[1] == "analysis" else Content
        return True

    def _read_text(self, parts: list[Part], is_last: bool) -> bool:
        ends = [at for mark in _ENDS if (at := self._waiting.find(mark)) >= 0]
        at = min(ends, default=len(self._waiting) - (0 if is_last else _num_open(self._waiting)))
        text, self._waiting = self._waiting[:at], self._waiting[at:]
        if text:
            parts.append(self._part(text))
        if ends:
            mark = next(mark for mark in _ENDS if self._waiting.startswith(mark))
            self._waiting, self._kind = self._waiting[len(mark) :], None
        return bool(ends)

    def _part(self, text: str) -> Part:
        if self._kind is CallArguments:
            return CallArguments(self.num_calls - 1, text)
        kind = Reasoning if self._kind is Reasoning else Content
        # Messages of one kind that follow each other are paragraphs of one text.
        joint = "" if self._has_text or self._is_new[kind] else "\n\n"
        self._has_text, self._is_new[kind] = True, False
        return kind(joint + text)


def _num_open(text: str) -> int:
    """Number of characters at the end of a text that may be the start of an end mark."""
    longest = max(map(len, _ENDS)) - 1
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(mark.startswith(text[-n:]) for mark in _ENDS)), 0
    )
