"""Text and bytes of a single token, and the special tokens of a vocabulary.

Owns the byte alphabets of vocabularies. Not here: text of several tokens (detokenizer.py). No torch.
"""

import re
from functools import lru_cache
from typing import Any

from medusa_dist.text.no_tokenizer import NoTokenizer


@lru_cache(maxsize=4)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all special tokens, named or reserved."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


@lru_cache(maxsize=4)
def special_texts(tokenizer: Any) -> dict[int, str]:
    """How all special tokens are spelled, by id."""
    added = tokenizer.added_tokens_decoder
    ids = sorted(special_ids(tokenizer))
    return {i: added[i].content if i in added else str(tokenizer.convert_ids_to_tokens(i)) for i in ids}


UNFINISHED = "\ufffd"  # decoders write U+FFFD for invalid or incomplete characters
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@lru_cache(maxsize=2**16)
def token_text(tokenizer: Any, token_id: int) -> tuple[str, bytes]:
    """One token as (text, bytes), for logprobs: with its leading space; U+FFFD in the text for a partial character.

    The text is what a second copy adds after the first, because some decoders strip the first word's space. Without a
    tokenizer it is "token_id:<id>", as in vLLM.
    """
    if isinstance(tokenizer, NoTokenizer):
        name = f"token_id:{token_id}"
        return name, name.encode()
    twice, once = (tokenizer.decode([token_id] * n, clean_up_tokenization_spaces=False) for n in (2, 1))
    text: str = twice[len(once) :]
    raw = _piece_bytes(tokenizer.convert_ids_to_tokens(token_id)) if UNFINISHED in text else None
    return text, text.encode() if raw is None else raw


def _piece_bytes(piece: str | None) -> bytes | None:
    """The bytes of a vocabulary entry: `<0xE4>` (sentencepiece) or GPT-2's printable alphabet; None if neither."""
    if piece is None:
        return None
    match = _BYTE_PIECE.fullmatch(piece)
    if match:
        return bytes([int(match[1], 16)])
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes: Latin-1 where printable, else from U+0100 in order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(own)]
    return {chr(b): b for b in own} | {chr(0x100 + i): b for i, b in enumerate(rest)}
