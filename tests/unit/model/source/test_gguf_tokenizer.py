"""The tokenizer of a GGUF file: split, spaces, bos and eos, templates and end tokens as llama.cpp has them.

The expected tokens are what llama.cpp's own tokenizer gave for the same files (xllamacpp 2026.10, /tokenize).
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, Phi3Config

from medusa_dist.errors import ModelError
from medusa_dist.model.source.eos import eos_token_ids
from medusa_dist.model.source.gguf import MARKER, convert, is_converted
from medusa_dist.model.source.gguf_rope import llama3, rope_parameters
from medusa_dist.model.source.gguf_tokenizer import Metadata, end_token_ids, read_tokenizer
from medusa_dist.model.source.pre_tokenizers import pre_tokenizer
from medusa_dist.model.support_check import read_config
from tests.support.tiny_gguf import write_gguf

TEXTS = ["a  2", "\n\n1.", "1234", "it's I'm", "x.\n\n1", "bC", "$5 ab", "é½ 好 12"]
LLAMA_CPP = {
    "smollm": "a|ĠĠ|2 ĊĊ|1|. 1|2|3|4 it|'|s|Ġ|I|'m x|.|ĊĊ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|1|2",
    "llama-bpe": "a|Ġ|Ġ|2 ĊĊ|1|. 123|4 it|'|s|Ġ|I|'m x|.|ĊĊ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "qwen2": "a|Ġ|Ġ|2 ĊĊ|1|. 1|2|3|4 it|'|s|Ġ|I|'m x|.|ĊĊ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|1|2",
    "gpt-2": "a|Ġ|Ġ2 Ċ|Ċ|1|. 123|4 it|'|s|Ġ|I|'m x|.|Ċ|Ċ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "default": "a|Ġ|Ġ|2 Ċ|Ċ|1|. 123|4 it|'|s|Ġ|I|'|m x|.|Ċ|Ċ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "tekken": "a|Ġ|Ġ|2 ĊĊ|1|. 1|2|3|4 it|'|s|Ġ|I|'m x|.|ĊĊ|1 b|C $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|1|2",
    "gpt-4o": "a|Ġ|Ġ|2 ĊĊ|1|. 123|4 it's|Ġ|I|'m x|.|ĊĊ|1 b|C $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "deepseek-llm": "a|ĠĠ|2 Ċ|Ċ|1|. 123|4 it|'|s|Ġ|I|'|m x|.|Ċ|Ċ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "deepseek-coder": "a|ĠĠ|2 Ċ|Ċ|1|. 1|2|3|4 it|'|s|Ġ|I|'|m x|.|Ċ|Ċ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|1|2",
    "deepseek-v3": "a|ĠĠ|2 ĊĊ|1|. 123|4 it|'|s|Ġ|I|'m x|.|ĊĊ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "falcon": "a|Ġ|Ġ2 Ċ|Ċ|1|. 123|4 it|'|s|Ġ|I|'|m x|.|Ċ|Ċ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "bloom": "a|Ġ|Ġ2 ĊĊ|1|. 123|4 it's|Ġ|I|'m x|.|ĊĊ|1 bC $5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|12",
    "viking": "a|Ġ|Ġ|2 ĊĊ|1|. 1|2|3|4 it's|Ġ|I|'m x|.|ĊĊ|1 bC $|5|Ġ|a|b Ã|©|Â|½|Ġ|å|¥|½|Ġ|1|2",
}


def tokenizer_of(path: Path) -> Any:
    return read_tokenizer(path, Metadata(path))


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_named_pre_tokenizer_splits_as_llama_cpp_does_also_once_saved(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.pre": name}))
    tokenizer.save_pretrained(tmp_path)
    for read in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        pieces = ["|".join(read.tokenize(text)) for text in TEXTS]
        assert pieces == LLAMA_CPP[name].split(" ")
        assert [read.decode(read(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == TEXTS


def test_a_pre_tokenizer_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer.ggml.pre\) is 'nonsense', which is not known.*Known: a.x-4.0"):
        convert(write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.pre": "nonsense"}), tmp_path / "out", "hash")
    assert not (tmp_path / "out").exists()


def test_a_missing_pre_tokenizer_is_the_default_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.pre": None})
    with caplog.at_level(logging.WARNING):
        tokenizer = tokenizer_of(path)
    assert ["|".join(tokenizer.tokenize(text)) for text in TEXTS] == LLAMA_CPP["default"].split(" ")
    assert "m.gguf does not say how its vocabulary splits text (tokenizer.ggml.pre is missing)" in caplog.text


@pytest.mark.parametrize("kind", ["t5", "bert", "rwkv", "plamo2", "no_vocab", "gemma4"])
def test_a_vocabulary_of_another_kind_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"\(tokenizer.ggml.model\) is '{kind}'; only 'gpt2'"):
        tokenizer_of(write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.model": kind}))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tokenizer.ggml.pre": "smollm"}, [258]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [1, 258]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, [258]),
        ({"tokenizer.ggml.pre": "tekken"}, [1, 258]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [1, 258, 0]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": None}, [258]),
    ],
)
def test_bos_and_eos_are_added_as_keys_say_or_the_pre_tokenizer_implies(
    keys: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(write_gguf(tmp_path / "m.gguf", keys))
    assert [258 if i > 2 else i for i in tokenizer("x")["input_ids"]] == expected


def test_letters_are_composed_for_models_whose_own_tokenizer_does_so(tmp_path: Path) -> None:
    for name, composed in (("qwen2", True), ("llama-bpe", False)):
        tokenizer = tokenizer_of(write_gguf(tmp_path / f"{name}.gguf", {"tokenizer.ggml.pre": name}))
        assert (tokenizer.tokenize("e\u0301") == tokenizer.tokenize("é")) is composed


def test_a_piece_that_is_a_token_stays_whole_where_merges_are_ignored() -> None:
    assert pre_tokenizer("llama-bpe").ignore_merges and pre_tokenizer("tekken").ignore_merges
    assert not pre_tokenizer("smollm").ignore_merges


@pytest.mark.parametrize(
    ("add_space", "expected"),
    [
        (True, ["<s>", "▁ab", "▁a", "</s>", "▁b", "▁▁", "<0x32>"]),
        (False, ["<s>", "ab", "▁a", "</s>", "b", "▁▁", "<0x32>"]),
    ],
)
def test_sentencepiece_texts_begin_with_a_space_also_after_special_tokens(
    add_space: bool, expected: list[str], tmp_path: Path
) -> None:
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": add_space}
    keys |= {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}
    tokenizer = tokenizer_of(write_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab a</s>b  2")["input_ids"]) == expected


def test_named_templates_survive_the_conversion(tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template": "d", "tokenizer.chat_templates": ["tool_use", "rag"]}
    keys |= {"tokenizer.chat_template.tool_use": "t", "tokenizer.chat_template.rag": "r"}
    folder = tmp_path / "out"
    convert(write_gguf(tmp_path / "m.gguf", keys), folder, "hash")
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"default": "d", "tool_use": "t", "rag": "r"}
    assert is_converted(folder, "hash")
    (folder / "additional_chat_templates" / "rag.jinja").unlink()
    assert not is_converted(folder, "hash")


def test_a_conversion_of_an_older_version_is_made_again(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "m.gguf"), tmp_path / "out", "hash")
    marker = tmp_path / "out" / MARKER
    assert '"format": 2' in marker.read_text()
    marker.write_text(marker.read_text().replace('"format": 2', '"format": 1'))
    assert not is_converted(tmp_path / "out", "hash")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0, 2]),  # <|endoftext|> by its key, <|im_end|> by its text
        ({"tokenizer.ggml.eos_token_id": 2}, [2, 0]),
        ({"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 8}, [0, 7, 8, 2]),
        ({"tokenizer.ggml.eot_token_id": 99999}, [0, 2]),
    ],
)
def test_end_tokens_are_those_of_the_keys_and_the_known_texts(
    keys: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", keys)
    assert end_token_ids(Metadata(path)) == expected


def test_the_end_tokens_reach_the_engine(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.eot_token_id": 7}), tmp_path / "out", "hash")
    assert eos_token_ids(tmp_path / "out", 276) == (0, 2, 7)


def test_a_token_id_outside_the_vocabulary_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m.gguf cannot be converted"):
        convert(write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.bos_token_id": 99999}), tmp_path / "out", "hash")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"rope_type": "default"}),
        ({"llama.rope.scaling.type": "none"}, {"rope_type": "default"}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_scaling_keys_are_read(keys: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "m.gguf", keys), tmp_path / "out", "hash")
    assert read_config(tmp_path / "out").rope_parameters == {"rope_theta": 10000.0} | expected


def test_rotary_scaling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "wave", "llama.rope.scaling.factor": 4.0}
    with pytest.raises(ModelError, match=r"rope.scaling.type = 'wave', factor 4"):
        convert(write_gguf(tmp_path / "m.gguf", keys), tmp_path / "out", "hash")
    keys = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    with pytest.raises(ModelError, match=r"rope.scaling.yarn_log_multiplier = 0.1 is not supported"):
        convert(
            write_gguf(tmp_path / "n.gguf", keys | {"llama.rope.scaling.yarn_log_multiplier": 0.1}),
            tmp_path / "out",
            "hash",
        )


def llama3_divisors(theta: float, dim: int, factor: float) -> np.ndarray:
    """As Llama 3's own code states it, frequency by frequency."""
    found = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * theta ** (i / dim)
        if wavelength < 8192 / 4.0:
            found.append(1.0)
        elif wavelength > 8192 / 1.0:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


def test_llama_3_scaling_is_read_from_its_divisors_others_are_refused(tmp_path: Path) -> None:
    divisors = llama3_divisors(10000.0, 16, 8.0)
    convert(write_gguf(tmp_path / "m.gguf", {}, {"rope_freqs.weight": divisors}), tmp_path / "out", "hash")
    rope = read_config(tmp_path / "out").rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8.0, 8192)
    assert llama3(llama3_divisors(500000.0, 64, 32.0), 500000.0, 64)["factor"] == 32.0
    assert llama3(np.ones(8), 10000.0, 16) == {}
    with pytest.raises(ModelError, match=r"rope_freqs.weight\) by a rule that is not Llama 3's"):
        llama3(np.linspace(1.0, 8.0, 8), 10000.0, 16)


def test_longrope_factors_and_a_partly_rotated_head_are_read(tmp_path: Path) -> None:
    """As Phi-4-mini's file has them, which the tiny Llama stands in for."""
    keys = {"llama.rope.scaling.original_context_length": 32, "llama.rope.scaling.attn_factor": 1.19}
    factors = {"rope_factors_short.weight": np.full(6, 1.5), "rope_factors_long.weight": np.full(6, 4.0)}
    path = write_gguf(tmp_path / "m.gguf", keys, factors)
    config = Phi3Config(hidden_size=32, num_attention_heads=2, max_position_embeddings=256)
    found = rope_parameters(PartlyRotated(path), config)
    assert found is not None and found["partial_rotary_factor"] == 0.75
    assert (found["rope_type"], found["original_max_position_embeddings"]) == ("longrope", 32)
    assert (found["short_factor"], found["long_factor"]) == ([1.5] * 6, [4.0] * 6)
    assert found["attention_factor"] == pytest.approx(1.19)


class PartlyRotated(Metadata):
    """12 of the 16 dimensions of a head turn."""

    def get(self, key: str, default: Any = None) -> Any:
        return 12 if key == "llama.rope.dimension_count" else super().get(key, default)
