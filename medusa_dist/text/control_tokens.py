"""Control tokens: the vocabulary entries that are markup for the model, and encoding that writes them on purpose only.

Owns which added tokens count, and encoding of text that may contain them as plain text. Not here: which part of a
conversation is the user's (chat_template.py, user_text.py). No torch.

Tokenizers search a text for added tokens before anything else, wherever the text came from. A second copy of the
tokenizer knows each control token under another, unguessable name only. Where a control token is meant, its name is
put into the text; its usual spelling is ordinary text to the copy. All else, such as word splitting and the treatment
of spaces, is that of the tokenizer.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer

from medusa_dist.errors import RequestError
from medusa_dist.text.token_text import special_texts
from medusa_dist.text.tracked_template import literal_text

# Tokenizers also add elements of HTML (Gemma's do), which are ordinary text: people write them.
_HTML = frozenset(
    {
        "a",
        "b",
        "blockquote",
        "body",
        "br",
        "caption",
        "center",
        "code",
        "col",
        "dd",
        "del",
        "details",
        "div",
        "dl",
        "dt",
    }
    | {
        "em",
        "footer",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "head",
        "header",
        "hr",
        "html",
        "i",
        "img",
        "ins",
        "kbd",
        "li",
    }
    | {"main", "mark", "nav", "ol", "p", "pre", "s", "section", "small", "span", "strong", "sub", "summary", "sup"}
    | {"table", "tbody", "td", "tfoot", "th", "thead", "title", "tr", "u", "ul"}
)
_BARS = re.compile(r"<[|｜]|[|｜]>")
_BRACKETS = re.compile(r"<(/?[^<>\s]+)>|\[[^\[\]\s]+\]")


@lru_cache(maxsize=4)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Spelling per id of the tokens that only a template (or a raw prompt) may write.

    All special tokens, and of the other added tokens those that are markup: with bars (`<|im_start|>`), a name in
    brackets that is no HTML element (`<think>`), or not only letters and written by the chat template itself. Other
    added tokens (white space, words of a fine-tuned model, HTML) are ordinary text, and encoding them differently would
    only make prompts unlike those the model was trained on.
    """
    written = literal_text(tokenizer)
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    special = special_texts(tokenizer)
    named = added | special
    return {i: text for i, text in named.items() if text.strip() and (i in special or _is_markup(text, written))}


def _is_markup(text: str, written: str) -> bool:
    brackets = _BRACKETS.fullmatch(text)
    if brackets is not None:
        return (brackets[1] or "").strip("/").lower() not in _HTML
    return bool(_BARS.search(text)) or (text in written and not re.fullmatch(r"[\w\s]+", text))


@lru_cache(maxsize=4)
def literal_encoder(tokenizer: Any) -> "LiteralEncoder":
    """The encoder of a tokenizer; made once."""
    return LiteralEncoder(tokenizer)


class LiteralEncoder:
    """Encodes text whose control tokens may be plain text. tokenizer: a transformers tokenizer.

    Results never contain added beginning or end tokens; `affixes` has those. The first text that needs it makes the
    second copy, which takes a second per 50,000 entries of the vocabulary or so; `prepare` makes it at once.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        self._nonce = secrets.token_hex(16)  # a name that nobody can type
        spellings = sorted(set(self._control.values()), key=len, reverse=True)
        self._spellings = re.compile("|".join(map(re.escape, spellings)) or "(?!)")
        self._id_of = {text: i for i, text in self._control.items()}

    def prepare(self) -> None:
        """Make the second copy now."""
        _ = self._copy

    def encode(self, text: str) -> list[int]:
        """As the tokenizer does: control tokens in the text become control tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """The whole text as plain text."""
        return self.encode_tracked(text, text, lambda _: True)

    def encode_tracked(self, text: str, marked: str, is_marked: Callable[[str], bool]) -> list[int]:
        """Control tokens where all characters are unmarked; the rest is plain text.

        marked[i] belongs to text[i]; is_marked: whether a piece of `marked` has a marked character. If no control token
        would come of marked characters, the result is exactly that of `encode`.
        """
        ids, has_marked = self._look(text, marked, is_marked)
        if not has_marked:
            return ids
        if self._copy is None:
            return self._encode_pieces(text, marked, is_marked)
        named, start = "", 0
        for token in self._unmarked(marked, is_marked):
            named += text[start : token.start()] + self._name(self._id_of[token[0]])
            start = token.end()
        return list(self._copy.encode(named + text[start:], add_special_tokens=False).ids)

    def control_in(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among these ids, in order."""
        return [i for i in ids if i in self._control]

    @cached_property
    def affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer adds before and after a text by itself (add_special_tokens)."""
        bare, full = (list(self._tokenizer("a", add_special_tokens=on)["input_ids"]) for on in (False, True))
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        return (), ()

    def add_affixes(self, ids: Sequence[int]) -> list[int]:
        """The ids with what the tokenizer adds, but never a second beginning."""
        before, after = self.affixes
        return [*(() if tuple(ids[: len(before)]) == before else before), *ids, *after]

    def _name(self, token_id: int) -> str:
        return f"zq{self._nonce}z{token_id}zq"

    def _unmarked(self, marked: str, is_marked: Callable[[str], bool]) -> list[re.Match[str]]:
        return [token for token in self._spellings.finditer(marked) if not is_marked(token[0])]

    def _look(self, text: str, marked: str, is_marked: Callable[[str], bool]) -> tuple[list[int], bool]:
        """The tokenizer's own ids, and whether one of its control tokens has marked characters."""
        if not self._tokenizer.is_fast:
            found = [token.span() for token in self._spellings.finditer(text)]
            return self.encode(text), found != [token.span() for token in self._unmarked(marked, is_marked)]
        # Offsets, not a search for spellings: a normalizer may make a control token of other characters.
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        spans = zip(ids, encoded["offset_mapping"], strict=True)
        return ids, any(i in self._control and is_marked(marked[start:end]) for i, (start, end) in spans)

    @cached_property
    def _copy(self) -> Tokenizer | None:
        """The tokenizer with other names for control tokens; None if it is not one of the tokenizers library."""
        if not self._tokenizer.is_fast:
            return None
        data = json.loads(self._tokenizer.backend_tokenizer.to_str())
        names = {text: self._name(i) for i, text in self._control.items()}
        for token in data["added_tokens"]:
            if token["content"] in names:  # searched for before the normalizer, which might change the name
                token.update(content=names[token["content"]], normalized=False)
        _rename_pieces(data["model"], names)
        data["post_processor"] = data["decoder"] = data["truncation"] = data["padding"] = None
        return Tokenizer.from_str(json.dumps(data))

    def _encode_pieces(self, text: str, marked: str, is_marked: Callable[[str], bool]) -> list[int]:
        """For tokenizers of other kinds: each stretch between control tokens by itself."""
        ids, start = [], 0
        for token in self._unmarked(marked, is_marked):
            ids += [*self._split(text[start : token.start()]), self._id_of[token[0]]]
            start = token.end()
        return ids + self._split(text[start:])

    def _split(self, piece: str) -> list[int]:
        """A piece without added tokens; by character where the vocabulary itself has the control token."""
        if not piece:
            return []
        for pieces in ([piece], list(piece)):
            options = {"add_special_tokens": False, "split_special_tokens": True}
            ids = [i for part in pieces for i in self._tokenizer(part, **options)["input_ids"]]
            if not self.control_in(ids):
                return ids
        raise RequestError("the text contains a control token that this tokenizer cannot write as text", "messages")


def _rename_pieces(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename control tokens in a model's own vocabulary, so that text cannot become them there either."""
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: (piece, score) by id
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
