"""End-of-sequence token ids, from the model's own files.

Owns reading eos ids. Not here: chat templates (text/, llm.py), what ends a sequence besides (engine/state/sequence.py).
"""

import json
from pathlib import Path

from transformers import AutoTokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")


def eos_token_ids(
    folder: Path, vocab_size: int, trust_remote_code: bool = False, with_tokenizer: bool = True
) -> tuple[int, ...]:
    """Ids that end generation: the union of what generation_config.json, config.json and the tokenizer name.

    A fine-tune often changes one of the three alone; vLLM, too, stops at the tokenizer's token and at those of the
    generation config. with_tokenizer: False leaves the tokenizer unread (skip_tokenizer_init). Ascending, below
    vocab_size, may be empty.
    """
    found = {
        *_named(folder / "generation_config.json"),
        *_named(folder / "config.json"),
        *(_of_tokenizer(folder, trust_remote_code) if with_tokenizer else ()),
    }
    return tuple(sorted(i for i in found if 0 <= i < vocab_size))


def _named(path: Path) -> list[int]:
    """`eos_token_id` of a JSON file: none, one or a list."""
    value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    if value is None:
        return []
    return [int(i) for i in value] if isinstance(value, list) else [int(value)]


def _of_tokenizer(folder: Path, trust_remote_code: bool) -> list[int]:
    """The id of the tokenizer's eos token; none without a tokenizer, or where the token is not in its vocabulary."""
    # Without files, transformers makes an empty tokenizer for some architectures, and that has an eos token.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return []
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError):
        return []  # a model without a usable tokenizer serves token ids; who needs text gets the error there
    token_id = tokenizer.eos_token_id
    known = token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == tokenizer.eos_token
    return [int(token_id)] if known else []
