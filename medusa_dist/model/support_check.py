"""Whether a model is supported, checked before anything expensive.

Owns the checks on a folder's config and safetensors headers, and what the config says about windows. Not here: the
context length (context_length.py), loading (load.py), the check that attention calls our function
(attention_bridge.py).
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from medusa_dist.errors import ModelError
from medusa_dist.model.sharding_plans import check_tp_size
from medusa_dist.model.source.checkpoint import Checkpoint

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_servable(folder: Path, tensor_parallel_size: int, trust_remote_code: bool = False) -> None:
    """Raise ModelError or ConfigError if the model in `folder` cannot be served on that many ranks.

    Reads only the config and the safetensors headers. The message names the reason and a way out.
    """
    config = read_config(folder, trust_remote_code)
    model_class(config, trust_remote_code)
    check_tp_size(config, tensor_parallel_size)
    checkpoint = Checkpoint(folder)
    for name in checkpoint.names():
        checkpoint.shape(name)  # opens every file once, which detects a truncated one


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The text model's transformers config. Raises ModelError for a folder or a kind of model that is not supported."""
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a transformers folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        hint = "; set trust_remote_code if you trust its author" if "trust_remote_code" in str(error) else ""
        raise ModelError(f"{folder / 'config.json'} cannot be read: {_first_line(error)}{hint}") from None
    refusal = _refusal(config)
    if refusal is not None:
        raise ModelError(f"{config.model_type} in {folder} is not supported: {refusal}")
    return config


def _refusal(config: Any) -> str | None:
    """Why this config's model is not supported, or None."""
    if config.get_text_config() is not config:
        return "it is multimodal; only text decoders are supported"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder; only decoders are supported"
    if getattr(config, "is_decoder", True) is False and config.model_type.startswith("bert"):
        return "it is an encoder (is_decoder is false)"
    if getattr(config, "add_cross_attention", False):
        return "it has cross-attention, which needs an encoder"
    if getattr(config, "kv_lora_rank", None):
        return "its keys and values are compressed (multi-head latent attention)"
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        return f"it is quantized ({getattr(method, 'value', method)}); use the unquantized checkpoint"
    odd = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if odd:
        return f"it has layers of type {', '.join(sorted(odd))}; only full and sliding attention are supported"
    return None


def model_class(config: Any, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The causal language model class of a config. Raises ModelError if its attention cannot be replaced by ours."""
    remote = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if remote and trust_remote_code:
        from_remote: type[PreTrainedModel] = _remote_class(config, remote)
        return _with_attention_backend(from_remote)
    try:
        found = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise ModelError(f"transformers has no causal language model for {config.model_type}") from None
    return _with_attention_backend(found)


def _remote_class(config: Any, reference: str) -> Any:
    loader: Any = get_class_from_dynamic_module
    return loader(reference, config._name_or_path)


def _with_attention_backend(found: Any) -> type[PreTrainedModel]:
    if not getattr(found, "_supports_attention_backend", False):
        raise ModelError(
            f"{found.__name__} is not supported: its attention cannot be replaced (it does not use transformers' "
            "attention interface; Falcon and Bloom do not, for example)"
        )
    result: type[PreTrainedModel] = found
    return result


def output_width(config: Any) -> int:
    """Width of what the output matrix, and so the heads, read: hidden_size, except for OPT with projections."""
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def layer_windows(config: Any) -> list[int | None]:
    """Sliding window of each layer in tokens, None = full attention, according to the config."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * int(config.num_hidden_layers)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
