"""Arguments of `LLM` as config keys: its own short forms, and vLLM's names.

Owns which arguments of vLLM's LLM mean something here, and what to use in place of the others. Not here: the config
keys (config.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medusa_dist.config import HEADS, LOOKUP, Config, parse_config
from medusa_dist.errors import ConfigError

SpeculationSpec = str | int | Sequence[Sequence[int]] | Mapping[str, Any]

# vLLM's names of config keys.
RENAMED = {
    "gpu_memory_utilization": "memory_fraction",
    "max_num_seqs": "max_running",
    "max_num_batched_tokens": "max_batched_tokens",
}
_DTYPES = {"half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True)
class Fixed:
    """An argument of vLLM without a key here. instead: what to do for a value that is not honoured.

    values: what describes this engine anyway, and is accepted; None always is.
    """

    instead: str
    values: tuple[Any, ...] = ()


_IMAGES = Fixed("text only; remove it", ({}, "", False, 0))
_ADAPTERS = Fixed("adapters are not loaded; merge one into the weights", (False,))
_TOKENIZER = Fixed("the tokenizer is that of the model's folder, at `revision`; put it there")
_FILES = Fixed("edit config.json in the model's folder", ({},))
_COMPILER = Fixed("nothing is compiled ahead of a run; remove it", (0, {}))
_OFFLOAD = Fixed("weights and KV cache stay on the device; use more ranks (tensor_parallel_size)", (0,))
_ONE_GROUP = Fixed("one group of ranks runs the whole model; use tensor_parallel_size, or replicas of a service", (1,))

FIXED: Mapping[str, Fixed] = {
    "task": Fixed("this class generates text; remove it", ("auto", "generate")),
    "runner": Fixed("this class generates text; remove it", ("auto", "generate")),
    "convert": Fixed("this class generates text; remove it", ("auto", "none")),
    **dict.fromkeys(("pooler_config", "override_pooler_config"), Fixed("this class generates text; remove it")),
    "tokenizer": _TOKENIZER,
    "tokenizer_revision": _TOKENIZER,
    "hf_config_path": _TOKENIZER,
    "code_revision": Fixed("code is read at `revision`; remove it"),
    "tokenizer_mode": Fixed("transformers' AutoTokenizer is used; remove it", ("auto", "hf")),
    "load_format": Fixed("weights are read from safetensors or a GGUF file; remove it", ("auto", "safetensors")),
    "config_format": Fixed("config.json is read; remove it", ("auto", "hf")),
    "kv_cache_dtype": Fixed("the KV cache has the model's dtype; remove it", ("auto",)),
    "block_size": Fixed("a block has 16 tokens; remove it", (16,)),
    "num_gpu_blocks_override": Fixed("use kv_cache_tokens: 16 tokens per block"),
    "kv_cache_memory_bytes": Fixed("use kv_cache_tokens"),
    **dict.fromkeys(("swap_space", "cpu_offload_gb"), _OFFLOAD),
    "enforce_eager": Fixed("", (True, False)),  # there are no CUDA graphs to turn off, and none are asked for
    "max_seq_len_to_capture": _COMPILER,
    "compilation_config": _COMPILER,
    "disable_custom_all_reduce": Fixed("", (True, False)),  # torch's own collectives are used
    "disable_async_output_proc": Fixed("", (True, False)),
    "async_scheduling": Fixed("steps are scheduled one at a time; remove it", (False,)),
    "enable_prefix_caching": Fixed("the prefix cache is always on; keep prompts apart with cache_salt", (True,)),
    "enable_chunked_prefill": Fixed("long prompts are always read in chunks, of max_batched_tokens", (True,)),
    "disable_log_stats": Fixed("nothing is logged; see LLM.facts and RequestOutput.stats", (True,)),
    "disable_log_requests": Fixed("requests are not logged; remove it", (True,)),
    "max_logprobs": Fixed("at most 20 log-probabilities per token; remove it", (20,)),
    "logprobs_mode": Fixed("log-probabilities are the model's own; remove it", ("raw_logprobs",)),
    "logits_processors": Fixed("use the fields of SamplingParams, such as logit_bias or structured_outputs", ([],)),
    "distributed_executor_backend": Fixed("several ranks run on Ray, one in this process; remove it", ("ray",)),
    **dict.fromkeys(("pipeline_parallel_size", "data_parallel_size"), _ONE_GROUP),
    "enable_expert_parallel": Fixed("experts are sharded as all layers are; remove it", (False,)),
    "hf_token": Fixed("set HF_TOKEN in the environment"),
    "download_dir": Fixed("set HF_HOME in the environment"),
    **dict.fromkeys(("hf_overrides", "rope_scaling", "rope_theta"), _FILES),
    **dict.fromkeys(("allowed_local_media_path", "limit_mm_per_prompt", "mm_processor_kwargs"), _IMAGES),
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "enable_prompt_adapter"), _ADAPTERS),
    **dict.fromkeys(
        ("structured_outputs_config", "guided_decoding_backend"),
        Fixed(
            "llguidance follows grammars; remove it", ("auto", "guidance", {"backend": "auto"}, {"backend": "guidance"})
        ),
    ),
}


def config_of(model: str, arguments: Mapping[str, Any]) -> Config:
    """The config of LLM(model, **arguments). Raises ConfigError naming the argument as it was given."""
    options = dict(arguments)
    options["speculation"] = speculation_keys(options.pop("speculation", "auto"))
    heads = options.pop("heads", None)
    if heads is not None:
        options["heads"] = {"source": heads} if isinstance(heads, str) else dict(heads)
    _take_speculative_config(options)
    _check_quantization(options)
    if options.get("tokenizer") == model:
        del options["tokenizer"]
    dtype = str(options.get("dtype", "auto")).removeprefix("torch.")
    options["dtype"] = _DTYPES.get(dtype, dtype)
    renamed = {}
    for name, key in RENAMED.items():
        if name in options:
            if key in options:
                raise ConfigError(f"{name} is vLLM's name of {key}, and both are given; remove one")
            options[key], renamed[key] = options.pop(name), name
    for name in [name for name in options if name in FIXED and name not in Config.model_fields]:
        _check_fixed(name, options.pop(name))
    try:
        return parse_config({"model": model, **options})
    except ConfigError as error:
        raise ConfigError("\n".join(_as_given(line, renamed) for line in error.message.splitlines())) from None


def _as_given(line: str, renamed: Mapping[str, str]) -> str:
    """A line about a config key, which begins with the name that the caller used for it."""
    key, colon, text = line.partition(":")
    return f"{renamed[key]} ({key}){colon}{text}" if key in renamed else line


def _check_fixed(name: str, value: Any) -> None:
    fixed = FIXED[name]
    if value is not None and not any(type(value) is type(each) and value == each for each in fixed.values):
        raise ConfigError(f"{name}: {value!r} is not supported: {fixed.instead}")


def _check_quantization(options: dict[str, Any]) -> None:
    """vLLM's argument has the key's name, and values that the key has not; None is the default of both."""
    value = options.get("quantization")
    if value is None:
        options.pop("quantization", None)
    elif value not in ("none", "int8"):
        raise ConfigError(
            f'quantization: {value!r} is not supported: use the unquantized checkpoint, with "int8" if you like, or a '
            "GGUF file as the model"
        )


def _take_speculative_config(options: dict[str, Any]) -> None:
    """vLLM's speculative_config as heads and speculation: at most num_speculative_tokens draft tokens per step; method
    "ngram" is lookup alone."""
    given = options.pop("speculative_config", None)
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigError(f"speculative_config must be a dict, got {given!r}")
    if "heads" in options or options["speculation"] != speculation_keys("auto"):
        raise ConfigError("speculative_config is vLLM's form of heads and speculation, and both are given; remove one")
    unknown = sorted(given.keys() - {"method", "model", "num_speculative_tokens", "draft_tensor_parallel_size"})
    if unknown:
        raise ConfigError(
            f"speculative_config.{unknown[0]}: not supported; docs/config.md lists the keys of speculation"
        )
    method = given.get("method", "medusa")
    if method not in ("medusa", "ngram"):
        raise ConfigError(f'speculative_config.method: {method!r} is not supported; "medusa" and "ngram" are')
    if given.get("draft_tensor_parallel_size", 1) != 1:
        raise ConfigError("speculative_config.draft_tensor_parallel_size: heads run on rank 0; remove it")
    if given.get("model") is not None and method == "ngram":
        raise ConfigError('speculative_config.model: method "ngram" uses no heads; remove it')
    if given.get("model") is not None:
        options["heads"] = {"source": given["model"]}
    if given.get("num_speculative_tokens") is not None:
        options["speculation"] = speculation_keys(given["num_speculative_tokens"])
    if method == "ngram" and options["speculation"]["mode"] == "auto":
        options["speculation"]["drafters"] = [LOOKUP]


def speculation_keys(speculation: SpeculationSpec) -> dict[str, Any]:
    """LLM's short forms of `speculation` as config keys."""
    if speculation in (HEADS, LOOKUP):
        return {"mode": "auto", "drafters": [speculation]}
    if isinstance(speculation, str):
        return {"mode": speculation} if speculation in ("auto", "off") else {"mode": "static", "tree": speculation}
    if isinstance(speculation, Mapping):
        return dict(speculation)
    if isinstance(speculation, int):
        return {"mode": "auto", "max_nodes": speculation} if speculation else {"mode": "off"}
    return {"mode": "static", "tree": speculation, "max_nodes": len(speculation)}
