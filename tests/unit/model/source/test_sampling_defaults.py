"""What a model recommends in its generation_config.json, and what a GGUF file keeps of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from transformers import GenerationConfig

from medusa_dist.errors import ConfigError
from medusa_dist.model.source.sampling_defaults import gguf_sampling, sampling_defaults

LLAMA = {"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def saved(folder: Path, values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def test_the_models_values_are_read_and_others_left(tmp_path: Path) -> None:
    assert sampling_defaults(saved(tmp_path, LLAMA)) == {"temperature": 0.6, "top_p": 0.9}
    every = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "max_new_tokens": 2048, "num_beams": 4}
    assert sampling_defaults(saved(tmp_path, every)) == {
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_tokens": 2048,
    }


def test_null_neutral_and_missing_values_are_none(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}
    neutral = {"temperature": 1.0, "top_p": 1, "top_k": -1, "min_p": None, "repetition_penalty": 1.0}
    assert sampling_defaults(saved(tmp_path, neutral)) == {}


def test_transformers_own_file_is_read(tmp_path: Path) -> None:
    GenerationConfig(do_sample=True, temperature=0.7, top_k=20, eos_token_id=2).save_pretrained(tmp_path)
    assert sampling_defaults(tmp_path) == {"temperature": 0.7, "top_k": 20}


def test_another_source_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    own, other = saved(tmp_path / "own", LLAMA), saved(tmp_path / "other", {"top_k": 5})
    assert sampling_defaults(own, "vllm") == {}
    assert sampling_defaults(own, str(other)) == {"top_k": 5}
    assert sampling_defaults(own, str(other / "generation_config.json")) == {"top_k": 5}
    with pytest.raises(ConfigError, match=r"generation_config: there is no .*nowhere"):
        sampling_defaults(own, str(tmp_path / "nowhere"))
    (other / "generation_config.json").unlink()
    with pytest.raises(ConfigError, match=r"generation_config: there is no .*other/generation_config\.json"):
        sampling_defaults(own, str(other))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"temperature": -1}, "temperature in .* must be a number between 0 and 100, got -1"),
        ({"temperature": "hot"}, "temperature in .* must be a number"),
        ({"top_p": True}, "top_p in .* must be a number"),
        ({"top_k": 2.5}, "top_k in .* must be a whole number"),
        ({"top_k": float("inf")}, "top_k in .* must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens in .* must be a whole number between 1"),
        ({"temperature": float("nan")}, "temperature in .* got nan"),
        ("[1]", "must hold a JSON object"),
        ("{", "cannot be read"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_served_is_named(tmp_path: Path, values: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=f"generation_config: .*{text}"):
        sampling_defaults(saved(tmp_path, values))


def test_a_gguf_files_recommendation_is_kept(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_float32("general.sampling.temp", 0.6)
    writer.add_int32("general.sampling.top_k", 20)
    writer.add_float32("general.sampling.top_p", 0.95)
    writer.add_float32("general.sampling.penalty_repeat", 1.05)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf_sampling(tmp_path / "tiny.gguf")
    assert found == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    GenerationConfig(**found, do_sample=True).save_pretrained(tmp_path)
    assert sampling_defaults(tmp_path) == found
