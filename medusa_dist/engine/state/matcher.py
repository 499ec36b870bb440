"""Grammar matchers: which tokens may come next for each sequence that has a grammar.

Owns the interface to llguidance: its tokenizer, compilation, and one Matcher per sequence. Not here: what a grammar is
(medusa_dist/grammar.py), where masks are applied (ops/sampling.py), which drafts are kept (spec/tree_policy.py).
The tokens allowed after a text depend on the text alone, not on which drafts were checked in between, so grammars keep
the guarantee that speculation never changes a token. A sequence ends as soon as only an end token can follow.
Shapes: V vocabulary of the model.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from medusa_dist.errors import ModelError, RequestError
from medusa_dist.grammar import Grammar, GrammarKind
from medusa_dist.ops.arrays import Bools

# Per grammar: half a second of compiling, some 50 ms per mask, and 40 MB. Texts are not shown in errors.
_LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,
    step_max_items=10_000,
    max_lexer_states=20_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_DEAD_END = "no token of the model's vocabulary can come next"
_MAX_REASON = 300  # characters of an error
_MAX_COMPILED = 32  # compiled grammars kept for later requests with the same grammar
# Allowed whitespace between JSON tokens: nothing, a blank, or a new line with its indentation. Given the choice, small
# models fill the rest of their context with blanks.
_JSON_BLANKS = r" |\n[ \t]{0,20}"


@dataclass(frozen=True, slots=True)
class State:
    """What may come after a text. allowed: [V]; includes end tokens where the text may end.

    is_complete: the text may end and cannot continue. error: why nothing can follow, not even an end token; else empty.
    """

    allowed: Bools
    is_complete: bool
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return self.is_complete or bool(self.error)


class Matcher:
    """The position of one sequence in its grammar. Paths are tokens after those kept so far.

    only: bool [V], the text tokens that the request allows; None = all. The text may end where the grammar allows it.
    """

    def __init__(
        self,
        grammar: Grammar,
        machine: LLMatcher,
        vocabulary: "Vocabulary",
        end_ids: tuple[int, ...],
        only: Bools | None = None,
    ) -> None:
        self.grammar = grammar
        self._machine = machine
        self._vocabulary = vocabulary
        self._end_ids = list(end_ids)
        self._only = only
        self._ahead: tuple[int, ...] = ()  # tokens the llguidance matcher has consumed beyond those kept
        self._states: dict[tuple[int, ...], State] = {}

    def state(self, path: tuple[int, ...] = ()) -> State:
        """What may come after a path of allowed tokens that contains no end token."""
        if path not in self._states:
            self._read(path)
            self._states[path] = self._state()
        return self._states[path]

    def fits(self, path: tuple[int, ...]) -> bool:
        """Whether the text may continue with this draft path. A path with an end token does not fit."""
        if not all(map(self._vocabulary.is_text, path)):
            return False
        self._read(())
        return bool(self._machine.validate_tokens(list(path)) == len(path))

    def forced(self) -> list[int]:
        """The tokens that must come next: what the grammar forces, as the tokenizer encodes it; often none."""
        self._read(())
        allowed = self.state().allowed
        tokens = [] if self.state().is_over else self._machine.compute_ff_tokens()
        return list(takewhile(lambda token: token < len(allowed), tokens))  # up to the first id that the model lacks

    def keep(self, tokens: tuple[int, ...]) -> None:
        """Commit tokens that became output; later paths start after them."""
        state = self.state(tokens)
        self._read(tokens)
        self._ahead = ()
        self._states = {(): state}

    def _read(self, path: tuple[int, ...]) -> None:
        """Move the llguidance matcher to a path: roll back to the common prefix, then consume the rest.

        A matcher in error does not move.
        """
        shared = 0
        while shared < min(len(path), len(self._ahead)) and path[shared] == self._ahead[shared]:
            shared += 1
        if len(self._ahead) > shared:
            self._machine.rollback(len(self._ahead) - shared)
        if len(path) > shared:
            self._machine.consume_tokens(list(path[shared:]))
        self._ahead = path

    def _state(self) -> State:
        allowed = self._vocabulary.allowed(self._machine)
        if self._machine.is_error():
            reason = _first_line(self._machine.get_error())
            error = _DEAD_END if "NoExtension" in reason else f"the text cannot continue: {reason}"
            return State(np.zeros_like(allowed), False, error)
        may_end = self._machine.is_accepting()
        if self._only is not None:
            allowed &= self._only
        if not allowed.any():
            end = _DEAD_END if self._only is None else "none of allowed_token_ids can come next"
            return State(allowed, may_end, "" if may_end else end)
        allowed[self._end_ids] = may_end
        return State(allowed, False)


class Vocabulary:
    """The model's tokens as llguidance sees them. Raises RequestError for a tokenizer that llguidance cannot read."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        known = len(tokenizer)
        ends = [i for i in eos_ids if i < known]
        self.tokenizer: LLTokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=ends or None)
        self._ends = frozenset(self.tokenizer.eos_tokens)
        self._vocab_size = vocab_size

    def is_text(self, token_id: int) -> bool:
        """Whether llguidance knows this token as an ordinary one, not as an end token."""
        return token_id < self.tokenizer.vocab_size and token_id not in self._ends

    def allowed(self, machine: LLMatcher) -> Bools:
        """Text tokens that may come next [V], without end tokens and without ids unknown to the tokenizer."""
        known = self.tokenizer.vocab_size
        words = np.zeros((1, (known + 31) // 32), dtype=np.int32)
        llguidance.numpy.fill_next_token_bitmask(machine, words)
        bits = np.unpackbits(words.view(np.uint8)[0], count=known, bitorder="little").view(np.bool_)
        bits[list(self._ends)] = False
        if known < self._vocab_size:
            return np.concatenate([bits, np.zeros(self._vocab_size - known, dtype=np.bool_)])
        return bits[: self._vocab_size]


@dataclass
class GrammarCompiler:
    """The compiled grammars of one engine. load_tokenizer: loads the model's tokenizer; called for the first grammar.

    `prepare` may be called from any thread, `start` from the engine's thread only.
    """

    load_tokenizer: Callable[[], Any]
    vocab_size: int
    eos_ids: tuple[int, ...]
    _vocabulary: Vocabulary | RequestError | None = None
    _compiled: OrderedDict[Grammar, LLMatcher | RequestError] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, grammar: Grammar) -> None:
        """Do the slow part of `start` now; errors are raised by `start`."""
        self._compile(grammar)

    def start(
        self,
        grammar: Grammar,
        output_ids: tuple[int, ...] = (),
        ignore_eos: bool = False,
        token_ids: tuple[int, ...] | None = None,
    ) -> Matcher:
        """A matcher positioned after output_ids. ignore_eos: the text continues for as long as it can. token_ids: of
        which the text consists; None = all.

        Raises RequestError for a grammar that is invalid, too costly, or matches no text.
        """
        found = self._compile(grammar)
        if isinstance(found, RequestError):
            message = _of_a_schema(found.message) if grammar.kind is GrammarKind.ANSWER else found.message
            raise grammar.error(" ".join(message.split())[:_MAX_REASON])
        assert isinstance(self._vocabulary, Vocabulary)
        ends = () if ignore_eos else tuple(i for i in self.eos_ids if i < self.vocab_size)
        only = None
        if token_ids is not None:
            only = np.zeros(self.vocab_size, dtype=np.bool_)
            only[[i for i in token_ids if 0 <= i < self.vocab_size]] = True  # others are refused by name later
        matcher = Matcher(grammar, found.deep_copy(), self._vocabulary, ends, only)
        if output_ids:
            matcher.keep(output_ids)
        state = matcher.state()
        if state.is_over:
            raise grammar.error(state.error or "it allows only the empty text")
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher | RequestError:
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
            if self._vocabulary is None:
                self._vocabulary = self._read_tokenizer()
            vocabulary = self._vocabulary
        found = vocabulary if isinstance(vocabulary, RequestError) else _compile(grammar, vocabulary.tokenizer)
        with self._lock:
            self._compiled[grammar] = found
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        return found

    def _read_tokenizer(self) -> Vocabulary | RequestError:
        try:
            return Vocabulary(self.load_tokenizer(), self.vocab_size, self.eos_ids)
        except (ModelError, OSError, ValueError) as error:
            return RequestError(f"the model's tokenizer is missing or cannot be read: {_first_line(str(error))}")


def _compile(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher | RequestError:
    try:
        machine = LLMatcher(tokenizer, _to_llguidance(grammar), log_level=0, limits=_LIMITS)
    except ValueError as error:  # raised by llguidance's JSON and GBNF parsers, and by Python for lone surrogates
        return RequestError(str(error))
    return RequestError(machine.get_error()) if machine.is_error() else machine


def _of_a_schema(message: str) -> str:
    """llguidance's error about an answer without the lines of the grammar, which the client did not write."""
    lines = [line for line in message.splitlines() if not re.match(r"\s*(\d+ \||\^$)", line)]
    return re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", "\n".join(lines))


def _to_llguidance(grammar: Grammar) -> str:
    """The grammar in llguidance's format."""
    if grammar.kind is GrammarKind.ANSWER:
        parts = [{"name": "answer", "lark_grammar": grammar.text}]
        if grammar.body is not None:
            parts.append(_part(grammar.body) | {"name": "body"})
        return json.dumps({"grammars": parts})
    if grammar.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT):
        schema = grammar.text or '{"type": "object"}'
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _JSON_BLANKS})
    if grammar.kind is GrammarKind.REGEX:
        # Digits are 0 to 9, as in JSON Schema: models do produce the other 700 digits of Unicode.
        pattern = llguidance.regex_to_lark(_without_anchors(grammar.text), use_ascii="d")
        return LLMatcher.grammar_from_lark(f"start: /{pattern}/")
    if grammar.kind is GrammarKind.CHOICE:
        # One terminal instead of one rule per text: the lexer handles thousands of texts, the parser does not.
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.text))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
    return llguidance.grammar_from("ebnf", grammar.text)


def _part(grammar: Grammar) -> dict[str, Any]:
    """A grammar as one of several that refer to each other."""
    text = _to_llguidance(grammar)
    if not text.startswith('{"grammars"'):
        return {"lark_grammar": text}
    part: dict[str, Any] = json.loads(text)["grammars"][0]
    return part


def _without_anchors(pattern: str) -> str:
    """Strip the anchors: the whole output must match anyway, and llguidance does not support them."""
    pattern = pattern.removeprefix("^")
    before = pattern.removesuffix("$")
    is_escaped = (len(before) - len(before.rstrip("\\"))) % 2 == 1
    if is_escaped and before == pattern:
        raise ValueError("it ends with a lone backslash")
    return pattern if is_escaped else before


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "unknown")
