"""User text in a rendered conversation: which characters of a prompt came from the request.

Owns the marks. Not here: rendering (tracked_template.py, chat_template.py), tokens (control_tokens.py). No torch.
Before a template renders them, the characters of a request's strings are replaced one for one by private ones that
occur nowhere else. Templates may cut, join, repeat and trim strings as they like: a character's origin stays visible in
the result, and replacing the private characters by their originals gives the text as it would have been.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from medusa_dist.errors import RequestError

_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # planes 15 and 16
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# White space is trimmed and counted, and JSON escapes these; no control token consists of them alone.
_NEVER = frozenset('"\\') | {chr(i) for i in range(0x20)}
_ASKS = frozenset({"startswith", "endswith", "find", "rfind", "index", "rindex", "count"})
_CASES = frozenset({"lower", "upper", "capitalize", "title", "swapcase", "casefold"})
_TRIMS = frozenset({"strip", "lstrip", "rstrip", "removeprefix", "removesuffix"})
_SPLITS = frozenset({"split", "rsplit", "partition", "rpartition"})


class _Table(dict[int, str]):
    """Private character per code point, chosen when it is first needed, for str.translate. back: the other way."""

    def __init__(self, free: Iterator[str], back: dict[int, str]) -> None:
        super().__init__()
        self._free, self._back = free, back

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character not in _NEVER and not character.isspace():
            private = self.next_free()
            self._back[ord(private)] = character
            character = private
        self[code] = character
        return character

    def next_free(self) -> str:
        """The next private character. Raises RequestError if there is none left."""
        private = next(self._free, None)
        if private is None:
            raise RequestError(f"more than {len(self._back)} different characters in one request", "messages")
        return private


class Marks:
    """The private characters of one request.

    values: all strings of the request, in lists and mappings. text: the prompt as rendered without marks; its
    characters are not used. White space, quotes and backslashes are never marked, nor are keys that are plain names,
    because templates look them up. Raises RequestError for more different characters than there are private ones.
    """

    def __init__(self, values: Any, text: str) -> None:
        characters = set("".join(_strings(values)))
        taken = characters | set(text)
        self._back: dict[int, str] = {}
        self._to = _Table((chr(i) for i in chain(*_PRIVATE) if chr(i) not in taken), self._back)
        for character in sorted(characters):  # in order, so that sorting gives the same
            self.mark(character)

    def new(self) -> str:
        """A private character that stands for nothing, to mark a place."""
        return self._to.next_free()

    def mark(self, value: Any) -> Any:
        """The value with marked strings."""
        if isinstance(value, str):
            return value.translate(self._to)
        if isinstance(value, Mapping):
            return {self._key(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item) for item in value]
        return value

    def mark_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages with marked strings. A role that is a word stays: some templates write control tokens of it."""
        return [
            {key: value if key == "role" and _is_name(value) else self.mark(value) for key, value in message.items()}
            for message in messages
        ]

    def plain(self, value: Any) -> Any:
        """The value with the original characters."""
        if isinstance(value, str):
            return value if value.isascii() else value.translate(self._back)
        if isinstance(value, dict):
            return {self.plain(key): self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self.plain, value))
        return value

    def is_marked(self, text: str) -> bool:
        """Whether any character of the text is marked."""
        return not text.isascii() and any(ord(character) in self._back for character in text)

    def call(self, text: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a method of str, as if nothing were marked, with the marks of what it keeps."""
        if not self.is_marked(text) and not any(self.is_marked(arg) for arg in args if isinstance(arg, str)):
            return getattr(text, method)(*args, **kwargs)
        plain = self.plain(text)
        plain_args, plain_kwargs = self.plain(args), self.plain(kwargs)
        if method in _ASKS or method.startswith("is"):
            return getattr(plain, method)(*plain_args, **plain_kwargs)
        if method in _CASES:
            return self._copy_marks(text, getattr(plain, method)())
        if method in _TRIMS:
            kept = getattr(plain, method)(*plain_args)
            start = 0 if method in ("rstrip", "removesuffix") else len(text) - len(kept)
            start = len(text) - len(plain.lstrip(*plain_args)) if method == "strip" else start
            return text[start : start + len(kept)]
        separator = plain_kwargs.get("sep", plain_args[0] if plain_args else None)
        if method == "replace" and separator:
            num = plain_kwargs.get("count", plain_args[2] if len(plain_args) > 2 else -1)
            return str(args[1]).join(_cut(text, plain.split(separator, num), len(separator)))
        if method in _SPLITS and separator:
            parts = getattr(plain, method)(*plain_args, **plain_kwargs)
            return _cut(text, parts, 0 if isinstance(parts, tuple) else len(separator))
        return getattr(text, method)(*args, **kwargs)

    def _key(self, key: Any) -> Any:
        return key if _is_name(key) else self.mark(key)

    def _copy_marks(self, text: str, changed: str) -> str:
        """`changed`, marked where `text` is; wholly if characters cannot be paired."""
        if len(changed) != len(text):
            return str(self.mark(changed))
        pairs = zip(text, changed, strict=True)
        return "".join(self.mark(new) if self.is_marked(old) else new for old, new in pairs)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _cut(text: str, parts: Iterable[str], gap: int) -> list[str]:
    """The text in parts of the same lengths, with `gap` characters left out between them."""
    cut, start = [], 0
    for part in parts:
        cut.append(text[start : start + len(part)])
        start += len(part) + gap
    return cut


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
