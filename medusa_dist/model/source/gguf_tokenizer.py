"""The tokenizer, chat templates and end tokens that a GGUF file describes.

Owns what transformers' own reading leaves out: how text is split before it is merged, spaces in front, bos and eos,
named chat templates, further end tokens. Not here: the table of splits (pre_tokenizers.py), weights (gguf.py).
"""

import logging
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from medusa_dist.errors import ModelError
from medusa_dist.model.source.pre_tokenizers import PreTokenizer, pre_tokenizer

logger = logging.getLogger(__name__)

_CONTROL = 3  # the token type of control tokens
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Control tokens that end an answer whatever the keys say, as in llama.cpp: most files lack eot_token_id.
_END_TEXTS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "<|eom_id|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>"),
    *("</s>", "<｜end▁of▁sentence｜>", "[e~["),
}


class Metadata:
    """The key-value pairs of a GGUF file; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key as a plain Python value, or `default`."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def tensors(self) -> dict[str, Any]:
        """The stored tensors by name."""
        return {tensor.name: tensor for tensor in self._reader.tensors}


def read_tokenizer(path: Path, metadata: Metadata) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, token for token as in llama.cpp.

    Raises ModelError for a kind of vocabulary or a pre-tokenizer that is not known.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"the GGUF file's tokenizer (tokenizer.ggml.model) is {kind!r}; only 'gpt2' (byte-level BPE) and 'llama' "
            "(sentencepiece) are supported; use the model's safetensors"
        )
    found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend: Tokenizer = found.backend_tokenizer
    add_bos = True
    if kind == "gpt2":
        meaning = _pre_tokenizer(path, metadata)
        _split_like(backend, meaning)
        add_bos = meaning.add_bos
    elif not str(metadata.get("general.architecture")).startswith("gemma"):
        _prepend_spaces(backend, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    adds = {
        f"add_{word}_token": getattr(found, f"{word}_token") is not None
        and bool(metadata.get(f"tokenizer.ggml.add_{word}_token", default))
        for word, default in (("bos", add_bos), ("eos", False))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{word}_token": getattr(found, f"{word}_token") for word in ("bos", "eos", "unk", "pad")},
        **adds,
        clean_up_tokenization_spaces=False,
        chat_template=chat_templates(metadata),
    )


def _pre_tokenizer(path: Path, metadata: Metadata) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if not name:
        logger.warning(
            "%s does not say how its vocabulary splits text (tokenizer.ggml.pre is missing): it is split as llama.cpp "
            "does by default, and answers may be worse; a newer conversion of the model names its pre-tokenizer",
            path.name,
        )
    return pre_tokenizer(name or "default")


def _split_like(backend: Tokenizer, meaning: PreTokenizer) -> None:
    """Make a byte-level tokenizer split text as its vocabulary was trained to."""
    backend.pre_tokenizer = meaning.build()
    backend.model.ignore_merges = meaning.ignore_merges
    backend.normalizer = normalizers.NFC() if meaning.nfc else None


def _prepend_spaces(backend: Tokenizer, add_prefix: bool) -> None:
    """Make a sentencepiece-like tokenizer put a space before each text, after special tokens too, or before none.

    transformers would do so at the very start alone, and pays no heed to add_space_prefix.
    """
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if add_prefix else spaces
    backend.pre_tokenizer = None
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_prefix else steps)


def chat_templates(metadata: Metadata) -> str | dict[str, str] | None:
    """The file's chat template, or its templates by name where it has several. The unnamed one is "default"."""
    default = metadata.get("tokenizer.chat_template")
    names = metadata.get("tokenizer.chat_templates") or []
    named = {name: metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    found = {name: text for name, text in named.items() if text is not None}
    if not found:
        return None if default is None else str(default)
    return ({} if default is None else {"default": default}) | found


def end_token_ids(metadata: Metadata) -> list[int]:
    """Tokens that end an answer, the eos token first, as llama.cpp finds them: by their keys and by their texts."""
    by_key = [metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    by_text = [
        i for i, (text, kind) in enumerate(zip(tokens, types, strict=False)) if kind == _CONTROL and text in _END_TEXTS
    ]
    texts = {tokens[i] for i in by_text}
    if texts & {"<|call|>", "<|calls|>"} and texts & {"<|return|>", "<|flush|>"}:
        by_text = [i for i in by_text if tokens[i] != "<|end|>"]  # there, it ends a message and not the answer
    return list(dict.fromkeys(i for i in [*by_key, *by_text] if i is not None and i < len(tokens)))
