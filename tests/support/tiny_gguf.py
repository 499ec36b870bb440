"""GGUF files made on the fly: a Llama of one layer, with a vocabulary whose merges show how text was split."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

CONTROL, NORMAL = 3, 1
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Each joins across what one pre-tokenizer or another separates.
PAIRS = "1 2|12 3|Ġ Ġ|Ġ 2|Ġ 1|Ċ Ċ|ĊĊ 1|a Ġ|' m|i t|it '|it' s|. Ċ|x .|b C|$ 5|Ġ b|ĠĠ b"


def byte_level() -> tuple[list[str], list[int], list[str]]:
    """Tokens, token types and merges: three control tokens, all bytes, and `PAIRS`."""
    merges = PAIRS.split("|")
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in merges)]
    return tokens, [CONTROL] * 3 + [NORMAL] * (len(tokens) - 3), merges


def sentencepiece() -> tuple[list[str], list[int], list[float]]:
    """Tokens, token types and scores: unk, bos, eos, all bytes, and a few pieces."""
    pieces = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    return tokens, [2, 3, 3] + [6] * 256 + [1] * len(pieces), [0.0] * 259 + [-float(i) for i in range(len(pieces))]


def write_gguf(path: Path, keys: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A byte-level model, or a sentencepiece one if keys say `tokenizer.ggml.model` = llama. None leaves a key out."""
    given: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    given |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0} | (keys or {})
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    if given["tokenizer.ggml.model"] == "llama":
        tokens, types, scores = sentencepiece()
        writer.add_token_scores(scores)
    else:
        tokens, types, merges = byte_level()
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_vocab_size(len(tokens))
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for key, value in given.items():
        if value is not None:
            add.get(type(value), writer.add_string)(key, value)
    wide = {name: (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in (wide | {"attn_norm": (32,), "ffn_norm": (32,)}).items()}
    shapes |= {"token_embd.weight": (len(tokens), 32), "output.weight": (len(tokens), 32), "output_norm.weight": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.full(shape, 0.01, np.float32))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
