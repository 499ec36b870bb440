"""The context that a model's config allows, by its rotary scaling, and what is asked beyond it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config

from medusa_dist.errors import ConfigError
from medusa_dist.model.context_length import ContextLength, check_cache_holds, context_length, resolve_max_model_len
from medusa_dist.model.support_check import read_config

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def llama(positions: int = 64, **rope: Any) -> LlamaConfig:
    return LlamaConfig(**SMALL, max_position_embeddings=positions, rope_parameters={"rope_theta": 1e4, **rope})


@pytest.mark.parametrize(
    ("config", "tokens", "reason"),
    [
        (llama(), 64, "max_position_embeddings 64"),
        (
            llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
            256,
            "yarn: factor 4 x original_max_position_embeddings 64",
        ),
        (llama(80, rope_type="yarn", factor=2.5, original_max_position_embeddings=32), 80, "yarn: factor 2.5 x"),
        (llama(40, rope_type="yarn", factor=4.0, original_max_position_embeddings=32), 128, "yarn: factor 4 x"),
        (llama(256, rope_type="yarn", factor=4.0, original_max_position_embeddings=64), 256, "yarn"),
        (
            llama(
                64,
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8,
            ),
            64,
            "max_position_embeddings 64",
        ),
        (llama(rope_type="linear", factor=2.0), 128, "linear: factor 2 x max_position_embeddings 64"),
        (llama(rope_type="dynamic", factor=2.0), 64, "dynamic rotary embedding: beyond 64 of 64 tokens"),
        (
            Phi3Config(
                **SMALL,
                pad_token_id=0,
                max_position_embeddings=128,
                original_max_position_embeddings=32,
                rope_parameters={**LONG, "rope_theta": 1e4, "original_max_position_embeddings": 32},
            ),
            32,
            "longrope rotary embedding: beyond 32 of 128 tokens",
        ),
        (
            Gemma3TextConfig(
                **SMALL,
                max_position_embeddings=64,
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            ),
            64,
            "max_position_embeddings 64",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_context_of_each_rotary_scaling(config: Any, tokens: int, reason: str) -> None:
    found = context_length(config)
    assert found.tokens == tokens and found.reason.startswith(reason)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_config_json_as_published_with_the_old_and_the_new_key(tmp_path: Path, key: str) -> None:
    """Qwen2.5's own lines for 131072 tokens, and gpt-oss's kind, whose length is the scaled one already."""
    written = {"model_type": "qwen2", **SMALL, "max_position_embeddings": 32768}
    scaling = {key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps(written | {"rope_scaling": scaling}))
    assert context_length(read_config(tmp_path)).tokens == 131072
    (tmp_path / "config.json").write_text(
        json.dumps(written | {"max_position_embeddings": 131072, "rope_scaling": scaling})
    )
    assert context_length(read_config(tmp_path)).tokens == 131072


def test_more_than_the_model_has_is_an_error_with_both_numbers_and_the_key() -> None:
    context = ContextLength(64, "dynamic rotary embedding")
    assert [resolve_max_model_len(asked, context) for asked in (None, 63, 64)] == [64, 63, 64]
    with pytest.raises(ConfigError, match=r"max_model_len 65 exceeds .* of 64 tokens \(dynamic rotary embedding"):
        resolve_max_model_len(65, context)


def test_more_than_the_cache_holds_is_an_error_only_if_it_was_asked_for() -> None:
    assert check_cache_holds(None, 64, 32, None) == 32
    assert check_cache_holds(64, 64, 64, None) == 64
    with pytest.raises(ConfigError, match=r"max_model_len 64 exceeds the 32 tokens .* raise memory_fraction"):
        check_cache_holds(64, 64, 32, None)
    with pytest.raises(ConfigError, match=r"at most 32, or raise kv_cache_tokens \(40\)"):
        check_cache_holds(64, 64, 32, 40)
