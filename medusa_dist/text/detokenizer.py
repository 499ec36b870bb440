"""Detokenizer: incremental text of a growing token sequence, in complete characters.

Owns incremental decoding. Not here: stop strings (text_stream.py), the text of a single token (token_text.py). No
torch.
"""

from collections.abc import Sequence
from typing import Any

from medusa_dist.text.no_tokenizer import NoTokenizer
from medusa_dist.text.token_text import UNFINISHED, special_ids

CONTEXT_TOKENS = 6  # enough context to know whether the first word starts with a space


MAX_HELD_TOKENS = 8  # a character spans at most 4 tokens; a longer wait means invalid bytes


class Detokenizer:
    """Text of a growing token sequence; returned text never changes.

    tokenizer: a transformers tokenizer; with NoTokenizer all text is empty. context: the tokens before the first one
    (the prompt, for text completion), so that sentencepiece models keep the space before the first word; empty if the
    output is a separate text (chat).
    skip_special_tokens: special tokens have no text. spaces_between_special_tokens: False writes one that follows
    another as it is in the vocabulary, without blanks that the decoder puts between them. shown_ids: special tokens
    that are shown even if the others are skipped.
    Each new token decodes a short window: the last tokens that produced text, and those since. Concatenated results
    equal `tokenizer.decode` of all tokens, with or without special ones.
    """

    def __init__(
        self,
        tokenizer: Any,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._is_silent = isinstance(tokenizer, NoTokenizer)
        self._skips = skip_special_tokens and not shown_ids
        self._hidden = frozenset() if self._is_silent or not skip_special_tokens else special_ids(tokenizer) - shown_ids
        self._joins = not (skip_special_tokens or spaces_between_special_tokens)
        self._follows_special = False
        self._special = frozenset() if self._is_silent else special_ids(tokenizer)
        self._window = [i for i in context[-CONTEXT_TOKENS:] if not shown_ids or i not in self._hidden]
        self._settled = len(self._window)  # window[:settled]: tokens whose text was returned completely
        self._shown = len(self._decode(self._window).rstrip(UNFINISHED))  # characters of the window returned so far

    def hides(self, token_id: int) -> bool:
        """Whether a token is special and has no text."""
        return token_id in self._hidden or (token_id in self._special and not self._decode([token_id]))

    @property
    def pending(self) -> str:
        """What `flush` would return."""
        return self._decode(self._window)[self._shown :]

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" for special tokens and inside a character."""
        if self._is_silent or self.hides(token_id):
            return ""
        is_special = token_id in self._special
        joined, self._follows_special = is_special and self._follows_special and self._joins, is_special
        if joined:
            self._window, self._settled, self._shown = [token_id], 1, len(self._decode([token_id]))
            return str(self._tokenizer.convert_ids_to_tokens(token_id))
        self._window.append(token_id)
        text = self._decode(self._window)
        stable = len(text.rstrip(UNFINISHED))
        if stable > self._shown:
            new = text[self._shown : stable]
            self._shown = stable
            if stable == len(text):
                self._slide()
            return new
        if len(self._window) - self._settled >= MAX_HELD_TOKENS:
            return self._let_go(text)
        return ""

    def flush(self) -> str:
        """The held text of an unfinished character, as the decoder writes it (U+FFFD)."""
        text = self._decode(self._window)
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new

    def _decode(self, ids: list[int]) -> str:
        if self._is_silent:
            return ""
        # Cleaning up spaces would change text that was already returned.
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skips, clean_up_tokenization_spaces=False)
        return text

    def _slide(self) -> None:
        """Move the start of the window to the tokens whose text was just completed."""
        recent = self._window[self._settled :]
        text = self._decode(recent)
        if text:
            self._window, self._shown = recent, len(text)
        self._settled = len(self._window)

    def _let_go(self, text: str) -> str:
        """Return the text of invalid bytes, except the last few tokens, which may still become a character.

        The window is cut where both parts decode to the whole, that is, not inside a character. Known limit: with a
        byte-fallback decoder, three or more literal U+FFFD in a row are returned as one per byte.
        """
        for keep in range(3, MAX_HELD_TOKENS):
            head, tail = self._window[:-keep], self._window[-keep:]
            rest = self._decode(tail)
            if self._decode(head) + rest == text and len(text) - len(rest) >= self._shown:
                new = text[self._shown : len(text) - len(rest)]
                self._window, self._settled, self._shown = tail, 0, 0
                return new
        return ""
