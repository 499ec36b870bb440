"""Default sampling values of a model, from its generation_config.json or GGUF file.

Owns reading and checking them. Not here: where they apply (api/convert.py, llm.py), end-of-sequence ids (eos.py).
"""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from medusa_dist.errors import ConfigError
from medusa_dist.sampling_fields import FIELDS

FILE = "generation_config.json"
# The file's key -> our field: those that vLLM reads.
_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def sampling_defaults(folder: Path, generation_config: str = "auto") -> dict[str, float | int]:
    """Values of sampling fields for requests that leave them out, where they differ from the fields' own defaults.

    folder: of the model. generation_config: the config key of this name: "auto" reads the model's file, if it has one;
    "vllm" reads none; otherwise a folder with such a file, or the file. Raises ConfigError for a file that is missing
    where it was named, or is not valid, and for a value outside a field's range.
    """
    if generation_config == "vllm":
        return {}
    place = folder if generation_config == "auto" else Path(generation_config).expanduser()
    path = place / FILE if place.is_dir() else place
    if not path.is_file():
        if generation_config == "auto":
            return {}
        raise ConfigError(f"generation_config: there is no {path}; give a folder with a {FILE}, auto, or vllm")
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"generation_config: {path} cannot be read: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"generation_config: {path} must hold a JSON object")
    found = {_KEYS[key]: _checked(path, key, given[key]) for key in _KEYS if given.get(key) is not None}
    return {name: value for name, value in found.items() if value != FIELDS[name].default or name == "max_tokens"}


_GGUF_KEYS = {  # llama.cpp's converter copies them from the model's generation_config.json
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def gguf_sampling(gguf: Path) -> dict[str, float | int]:
    """Sampling values that a GGUF file recommends, by the keys of a generation_config.json; often none."""
    fields = GGUFReader(gguf).fields
    found = {name: fields[key].contents() for key, name in _GGUF_KEYS.items() if key in fields}
    # The file holds float32: 0.6 was written, not 0.6000000238.
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in found.items()}


def _checked(path: Path, key: str, value: Any) -> float | int:
    field = FIELDS[_KEYS[key]]
    assert field.low is not None and field.high is not None
    is_whole = key in ("top_k", "max_new_tokens")
    low = 1 if key == "max_new_tokens" else field.low
    if key == "top_k" and value == -1:
        value = 0  # all, as in vLLM
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= field.high or (is_whole and value != int(value)):
        kind = "whole number" if is_whole else "number"
        raise ConfigError(
            f"generation_config: {key} in {path} must be a {kind} between {low:g} and {field.high:g}, got {value!r}; "
            "correct it, name another file, or set generation_config to vllm to use none"
        )
    return int(value) if is_whole else float(value)
