import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertGenerationConfig,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma3Config,
    LlamaConfig,
    OPTConfig,
    Qwen3NextConfig,
    T5Config,
)

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.support_check import check_servable, layer_windows, output_width
from tests.support.tiny_models import configs, save_tiny

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 97}


def folder_of(config: Any, folder: Path) -> Path:
    config.save_pretrained(folder)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", list(configs()))
def test_supported_architecture_passes(name: str, tmp_path: Path) -> None:
    check_servable(folder_of(configs()[name], tmp_path), 2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FalconConfig(**SMALL), "FalconForCausalLM is not supported: its attention cannot be replaced"),
        (BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=97), "BloomForCausalLM is not supported"),
        (T5Config(num_layers=1), "t5 .*encoder-decoder"),
        (BertGenerationConfig(**SMALL), "is_decoder is false"),
        (Gemma3Config(), "multimodal"),
        (DeepseekV3Config(), "latent attention"),
        (Qwen3NextConfig(num_hidden_layers=4), "linear_attention"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_unsupported_model_is_refused_with_its_reason(config: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        check_servable(folder_of(config, tmp_path), 1)


def edit(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_quantized_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder_of(LlamaConfig(**SMALL), tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantized \(gptq\)"):
        check_servable(tmp_path, 1)


def test_unknown_model_types_and_remote_code_are_refused(tmp_path: Path) -> None:
    folder_of(LlamaConfig(**SMALL), tmp_path)
    edit(tmp_path, model_type="llama9")
    with pytest.raises(ModelError, match=r"config\.json cannot be read.*llama9"):
        check_servable(tmp_path, 1)
    edit(tmp_path, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    with pytest.raises(ModelError, match="trust_remote_code"):
        check_servable(tmp_path, 1)


def test_missing_folder_config_or_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        check_servable(tmp_path / "gone", 1)
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_servable(tmp_path, 1)
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="only safetensors"):
        check_servable(tmp_path, 1)


def test_illegal_tensor_parallel_size_is_refused_from_the_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="legal: 1 to 2"):
        check_servable(folder_of(LlamaConfig(**SMALL), tmp_path), 3)


def test_layer_windows_follow_the_config() -> None:
    known = configs()
    assert layer_windows(known["llama"]) == [None, None]
    assert layer_windows(known["mistral"]) == [4, 4]
    assert layer_windows(known["gemma2"]) == [4, None]


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    check_servable(tmp_path, 3)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="download the model again"):
        check_servable(tmp_path, 1)


def test_output_width_is_what_the_output_matrix_reads() -> None:
    opt = OPTConfig(hidden_size=16, word_embed_proj_dim=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16)
    assert output_width(opt) == 8
    assert output_width(LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)) == 16
