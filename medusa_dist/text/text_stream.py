"""From token ids to text: incremental detokenisation and stop strings.

Owns what a reader sees of an output, token by token: characters are shown when they are complete, text is shown when
it can no longer be part of a stop string. Used by the HTTP front and by `LLM`. Not here: end-of-sequence and stop
token ids (the engine ends there by itself), max_tokens, grammars. Imports no torch.
visible = what the reader sees; held = decoded, but perhaps the beginning of a stop string; counted = tokens up to and
including the one that completes a stop string; what was decoded behind it in the same step is surplus and is dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from medusa_dist.request import FinishReason, Hypothesis, Output, SamplingParams, SpeculationStats, TokenLogprobs

UNFINISHED = "\ufffd"  # decoders write U+FFFD for bytes that are not, or not yet, a character
CONTEXT_TOKENS = 6  # enough prompt to know whether the first word starts with a space
MAX_HELD_TOKENS = 8  # a character spans at most 4 tokens; a longer wait means that the bytes are no text
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """Text of a growing token sequence; what was returned once is never changed.

    tokenizer: a transformers tokenizer. context: the tokens before the first one (the prompt, for text completion),
    so that sentencepiece models keep the space before their first word; leave it empty where the output is a text of
    its own (chat).
    A short window is decoded anew per token: the last tokens that gave text, then those since. Concatenated results
    equal `tokenizer.decode` of all tokens without special ones.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._window = list(context[-CONTEXT_TOKENS:])
        self._settled = len(self._window)  # window[:settled]: tokens whose text was returned as a whole
        self._shown = len(self._decode(self._window).rstrip(UNFINISHED))  # characters of the window returned so far

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" for special tokens and in the middle of a character."""
        if token_id in self._special and not self._decode([token_id]):
            return ""
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
        """What was held back for an unfinished character, as the decoder writes it (U+FFFD)."""
        text = self._decode(self._window)
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new

    def _decode(self, ids: list[int]) -> str:
        # Cleaning up spaces would change text that was returned already.
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _slide(self) -> None:
        """Start the window at the tokens whose text was just completed."""
        recent = self._window[self._settled :]
        text = self._decode(recent)
        if text:
            self._window, self._shown = recent, len(text)
        self._settled = len(self._window)

    def _let_go(self, text: str) -> str:
        """Return garbage bytes, all but the last few tokens, from which a real character may still grow.

        The window is cut where both sides decode to the whole, that is, not inside a character. Known limit: with a
        byte-fallback decoder, three or more literal U+FFFD in a row come out as one per byte.
        """
        for keep in range(3, MAX_HELD_TOKENS):
            head, tail = self._window[:-keep], self._window[-keep:]
            rest = self._decode(tail)
            if self._decode(head) + rest == text and len(text) - len(rest) >= self._shown:
                new = text[self._shown : len(text) - len(rest)]
                self._window, self._settled, self._shown = tail, 0, 0
                return new
        return ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one Output adds for the reader. text: newly visible. token_ids, heads, logprobs, stats: counted tokens only.

    text_offsets[i]: character of the whole text at which token i starts, held text included; so a token inside a stop
    string may start behind the end of the visible text.
    finish_reason: None until the end. stopped: a stop string was hit; the engine does not know and must be told.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    text_offsets: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stopped: bool = False
    stats: SpeculationStats = field(default_factory=SpeculationStats)


class TextStream:
    """The visible text of one request, fed with its Outputs in order.

    How tokens are grouped into Outputs changes nothing but the grouping of the deltas.

    An end-of-sequence or stop token is the last id of an Output whose finish_reason is STOP; it is counted, and not
    shown; but if the grammar is complete, that id is text. A stop string is not shown either; the text before it is.
    Of several stop strings the one that is complete first counts, of two complete at once the longer. A stop string
    completed within the first min_tokens tokens is ordinary text.
    text, token_ids, heads, logprobs, text_offsets, stats, finish_reason: everything so far. num_cached_tokens,
    prompt_logprobs: of the prompt, as the engine said; hypotheses: of a beam search.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams, context: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, context)
        self._stop = params.stop
        self._min_tokens = params.min_tokens
        self._held = ""
        self._decoded = 0  # characters, visible or held
        self.text = ""
        self.token_ids: list[int] = []
        self.heads: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.text_offsets: list[int] = []
        self.stats = SpeculationStats()
        self.num_cached_tokens = 0
        self.hypotheses: tuple[Hypothesis, ...] = ()
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self.finish_reason: FinishReason | None = None
        self.stopped = False

    def push(self, output: Output) -> TextDelta:
        """Take one Output. After the end, surplus Outputs give empty deltas."""
        if self.finish_reason is not None:
            return TextDelta()
        before, num_chars = len(self.token_ids), len(self.text)
        self.num_cached_tokens = output.num_cached_tokens
        self.hypotheses = output.hypotheses
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        last_is_silent = output.finish_reason is FinishReason.STOP and not output.is_complete
        for i, token_id in enumerate(output.token_ids):
            self.token_ids.append(token_id)
            self.text_offsets.append(self._decoded)
            is_silent = last_is_silent and i == len(output.token_ids) - 1
            self._reveal("" if is_silent else self._detokenizer.push(token_id))
            if self.stopped:
                break
        if output.finish_reason is not None and not self.stopped:
            self._reveal(self._detokenizer.flush())
        self.finish_reason = FinishReason.STOP if self.stopped else output.finish_reason
        if self.finish_reason is not None and not self.stopped:
            self.text, self._held = self.text + self._held, ""
        return self._count(output, before, num_chars)

    def _reveal(self, new: str) -> None:
        """Append decoded text; show what cannot belong to a stop string, and stop behind the first complete one."""
        self._decoded += len(new)
        old = len(self._held)
        text = self._held + new
        hit = _first_stop(text, self._stop, old) if len(self.token_ids) > self._min_tokens else None
        if hit is not None:
            self.stopped = True
            self.text, self._held = self.text + text[:hit], ""
            return
        keep = _num_open(text, self._stop)
        cut = len(text) - keep
        self.text, self._held = self.text + text[:cut], text[cut:]

    def _count(self, output: Output, before: int, num_chars: int) -> TextDelta:
        """The delta of an Output, of which the tokens from `before` on were counted."""
        num = len(self.token_ids) - before
        delta = TextDelta(
            text=self.text[num_chars:],
            token_ids=output.token_ids[:num],
            heads=output.heads[:num],
            logprobs=output.logprobs[:num],
            text_offsets=tuple(self.text_offsets[before:]),
            finish_reason=self.finish_reason,
            stopped=self.stopped,
            stats=_without(output.stats, output.heads[num:]),
        )
        self.heads.extend(delta.heads)
        self.logprobs.extend(delta.logprobs)
        self.stats = self.stats + delta.stats
        return delta


def _first_stop(text: str, stops: Sequence[str], old: int) -> int | None:
    """Where the stop string that is complete first begins, if it ends behind the first `old` characters."""
    ends = []
    for stop in stops:
        start = text.find(stop, max(0, old - len(stop) + 1))
        if start >= 0:
            ends.append((start + len(stop), start))
    return min(ends)[1] if ends else None


def _num_open(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text could be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest


def _without(stats: SpeculationStats, surplus_heads: Sequence[int]) -> SpeculationStats:
    """The counts without accepted tokens that nobody will see."""
    if not any(surplus_heads):
        return stats
    accepted = list(stats.accepted_per_head)
    for head in surplus_heads:
        if 0 < head <= len(accepted):
            accepted[head - 1] = max(0, accepted[head - 1] - 1)
    return replace(stats, accepted_per_head=tuple(accepted))


@lru_cache(maxsize=4)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all special tokens, named or only reserved."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


@lru_cache(maxsize=2**16)
def token_text(tokenizer: Any, token_id: int) -> tuple[str, bytes]:
    """One token as (text, bytes), for logprobs: with its leading space; U+FFFD in the text for part of a character.

    The text is what a second copy adds behind a first, since some decoders strip the space of the first word.
    """
    twice, once = (tokenizer.decode([token_id] * n, clean_up_tokenization_spaces=False) for n in (2, 1))
    text: str = twice[len(once) :]
    raw = _piece_bytes(tokenizer.convert_ids_to_tokens(token_id)) if UNFINISHED in text else None
    return text, text.encode() if raw is None else raw


def _piece_bytes(piece: str | None) -> bytes | None:
    """The bytes behind a vocabulary entry: `<0xE4>` (sentencepiece) or GPT-2's printable alphabet; None if neither."""
    if piece is None:
        return None
    match = _BYTE_PIECE.fullmatch(piece)
    if match:
        return bytes([int(match[1], 16)])
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes: Latin-1's own where printable, else U+0100 and on, in order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(own)]
    return {chr(b): b for b in own} | {chr(0x100 + i): b for i, b in enumerate(rest)}
