"""Arguments of vLLM's LLM: taken under its names, or refused by name."""

import pytest
import torch

from medusa_dist.config import Config
from medusa_dist.errors import ConfigError
from medusa_dist.offline.arguments import FIXED, RENAMED, config_of


def test_vllm_names_set_config_keys_of_other_names() -> None:
    config = config_of("m", {"gpu_memory_utilization": 0.5, "max_num_seqs": 3, "max_num_batched_tokens": 99})
    assert (config.memory_fraction, config.max_running, config.max_batched_tokens) == (0.5, 3, 99)
    assert set(RENAMED.values()) <= set(Config.model_fields)


def test_arguments_named_like_a_config_key_set_it() -> None:
    given = {
        "tensor_parallel_size": 2,
        "trust_remote_code": True,
        "revision": "main",
        "max_model_len": 77,
        "skip_tokenizer_init": True,
        "served_model_name": "x",
        "device": "cpu",
    }
    config = config_of("m", given)
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", "auto"),
        ("half", "float16"),
        ("float", "float32"),
        ("bfloat16", "bfloat16"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
    ],
)
def test_dtype_aliases_and_torch_dtypes_are_read(dtype: object, expected: str) -> None:
    assert config_of("m", {"dtype": dtype}).dtype == expected
    assert config_of("m", {}).dtype == "auto"


def test_ngram_method_is_lookup_alone() -> None:
    config = config_of("m", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 5}})
    assert (config.speculation.drafters, config.speculation.max_nodes) == (("lookup",), 5)
    assert config.speculation == config_of("m", {"speculation": {"drafters": ["lookup"], "max_nodes": 5}}).speculation
    assert config_of("m", {"speculation": "lookup"}).speculation.drafters == ("lookup",)
    assert config_of("m", {"speculation": "heads"}).speculation.drafters == ("heads",)


def test_speculative_config_sets_heads_and_speculation() -> None:
    given = {"method": "medusa", "model": "owner/heads", "num_speculative_tokens": 5}
    config = config_of("m", {"speculative_config": given})
    assert config.heads.source == "owner/heads"
    assert (config.speculation.mode, config.speculation.max_nodes) == ("auto", 5)
    assert config_of("m", {"speculative_config": None, "heads": None}) == config_of("m", {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speculative_config": {"method": "eagle"}}, "speculative_config.method: 'eagle' is not supported"),
        ({"speculative_config": {"method": "ngram", "model": "h"}}, 'speculative_config.model: method "ngram"'),
        ({"speculative_config": {"prompt_lookup_max": 3}}, "speculative_config.prompt_lookup_max: not supported"),
        ({"speculative_config": "medusa"}, "speculative_config must be a dict"),
        ({"speculative_config": {"model": "h"}, "heads": "h"}, "both are given"),
        ({"speculative_config": {"model": "h"}, "speculation": 3}, "both are given"),
        ({"max_num_seqs": 4, "max_running": 4}, "max_num_seqs is vLLM's name of max_running, and both are given"),
        ({"max_num_seqs": 0}, r"^max_num_seqs \(max_running\): Input should be greater"),
        ({"gpu_memory_utilization": 2.0}, r"^gpu_memory_utilization \(memory_fraction\): Input should be less"),
        ({"quantization": "awq"}, "quantization: 'awq' is not supported: .*unquantized"),
        ({"enable_prefix_caching": False}, "enable_prefix_caching: False is not supported: .*cache_salt"),
        ({"swap_space": 4}, "swap_space: 4 is not supported: .*tensor_parallel_size"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size: 2 is not supported: .*tensor_parallel_size"),
        ({"kv_cache_memory_bytes": 2**30}, "kv_cache_memory_bytes: 1073741824 is not supported: use kv_cache_tokens"),
        ({"enable_lora": True}, "enable_lora: True is not supported: .*merge one into the weights"),
        ({"tokenizer": "other"}, "tokenizer: 'other' is not supported: .*model's folder"),
        ({"tokenizer_mode": "slow"}, "tokenizer_mode: 'slow' is not supported"),
        ({"hf_token": "x"}, "hf_token: 'x' is not supported: set HF_TOKEN"),
        ({"runner": "pooling"}, "runner: 'pooling' is not supported: this class generates text"),
        ({"compilation_config": 3}, "compilation_config: 3 is not supported"),
        ({"dtype": "int8"}, "dtype: Input should be"),
        ({"wings": 2}, "wings: unknown key"),
    ],
)
def test_argument_without_counterpart_is_refused_by_name(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of("m", given)


def test_quantization_is_a_key_of_ours_and_vllms_none_is_its_default() -> None:
    assert config_of("m", {"quantization": None}) == config_of("m", {"quantization": "none"}) == config_of("m", {})
    assert config_of("m", {"quantization": "int8"}).quantization == "int8"


def test_values_that_describe_this_engine_change_nothing() -> None:
    plain = config_of("m", {})
    for name, fixed in FIXED.items():
        assert all(config_of("m", {name: value}) == plain for value in (None, *fixed.values)), name
        assert fixed.instead or set(fixed.values) == {True, False}, f"{name}: what to use instead"
    assert config_of("m", {"tokenizer": "m"}) == plain
