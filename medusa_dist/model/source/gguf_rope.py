"""The rotary embedding that a GGUF file describes, as transformers' `rope_parameters`.

Owns the scaling keys and tensors that transformers does not read from GGUF files. Not here: the context length that
they allow (model/context_length.py), the conversion (gguf.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_dist.errors import ModelError
from medusa_dist.model.source.gguf_tokenizer import Metadata

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_NEUTRAL = {"attn_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0}  # values that change nothing


def rope_parameters(metadata: Metadata, config: Any) -> dict[str, Any] | None:
    """`rope_parameters` completed from the file's scaling keys and tensors; None where the model has no such embedding.

    config: as transformers read it from the file. Raises ModelError for a scaling that is not known.
    """
    known = getattr(config, "rope_parameters", None)
    if not known or any(isinstance(part, dict) for part in known.values()):
        return known  # none, or one per kind of layer, as Gemma 3 has
    given = dict(known)
    if given.get("rope_type", "default") != "default":
        return given  # transformers has read it
    rotated = _key(metadata, "dimension_count")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = given.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1.0)
    if rotated is not None and rotated != int(head_dim * share):
        given["partial_rotary_factor"] = rotated / head_dim
    return given | _scaling(metadata, given["rope_theta"], rotated or int(head_dim * share))


def _key(metadata: Metadata, name: str) -> Any:
    return metadata.get(f"{metadata.get('general.architecture')}.rope.{name}")


def _scaling(metadata: Metadata, theta: float, rotated: int) -> dict[str, Any]:
    """The scaling's own entries; none where the file has no scaling. rotated: dimensions of a head that turn."""
    tensors = metadata.tensors()
    if "rope_freqs.weight" in tensors:
        return llama3(np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64), theta, rotated)
    kind = _key(metadata, "scaling.type") or ("linear" if _key(metadata, "scale_linear") else "none")
    factor = _key(metadata, "scaling.factor") or _key(metadata, "scale_linear")
    original = _key(metadata, "scaling.original_context_length")
    if "rope_factors_long.weight" in tensors:
        factors = {
            f"{word}_factor": [float(x) for x in tensors[f"rope_factors_{word}.weight"].data]
            for word in ("short", "long")
        }
        attention = _key(metadata, "scaling.attn_factor")
        extra = {} if attention is None else {"attention_factor": float(attention)}
        return {"rope_type": "longrope", "original_max_position_embeddings": original, **factors, **extra}
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return {}
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier", "alpha"):
        value = _key(metadata, f"scaling.{name}")
        if value is not None and value != _NEUTRAL.get(name):
            raise ModelError(f"the GGUF file's rope.scaling.{name} = {value:g} is not supported; use the safetensors")
    if kind not in ("linear", "yarn") or not factor:
        raise ModelError(
            f"the GGUF file's rotary scaling (rope.scaling.type = {kind!r}, factor {factor}) is not supported; use the "
            "model's safetensors"
        )
    extra = {"original_max_position_embeddings": int(original)} if original else {}
    if kind == "yarn":
        extra |= {
            ours: float(value)
            for theirs, ours in _YARN.items()
            if (value := _key(metadata, f"scaling.{theirs}")) is not None
        }
    return {"rope_type": kind, "factor": float(factor), **extra}


def llama3(divisors: NDArray[np.float64], theta: float, rotated: int) -> dict[str, Any]:
    """Llama 3's scaling from what a file stores of it: by how much each frequency is divided.

    theta: base of the frequencies. Raises ModelError if the divisors do not follow Llama 3's rule.
    """
    factor = float(divisors.max())
    if np.all(divisors == 1.0):
        return {}
    found = {"rope_type": "llama3", "factor": round(factor, 4), **_LLAMA3}
    wavelengths = 2 * np.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    turns = _LLAMA3["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - 1.0) / 3.0, 0.0, 1.0)
    if divisors.shape != smooth.shape or not np.allclose(1 / divisors, (1 - smooth) / factor + smooth, rtol=1e-3):
        raise ModelError(
            "the GGUF file scales its rotary frequencies (rope_freqs.weight) by a rule that is not Llama 3's; use the "
            "model's safetensors"
        )
    return found
