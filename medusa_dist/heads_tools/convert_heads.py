"""`medusa-dist convert-heads`: converts published Medusa heads to our safetensors + JSON.

Owns the files on both sides. Not here: their layouts (medusa/heads/published_heads.py), our format
(medusa/heads/heads_file.py).
The only place that reads .pt files, which are pickles: with weights_only, so that a file can create tensors and nothing
else. Serving reads only safetensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medusa_dist.config import explain_validation
from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.heads_file import DESCRIPTION, BaseModelFacts, HeadsDescription, HeadsFile, dtype_name
from medusa_dist.medusa.heads.published_heads import Published, check_config, recognise
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.source.resolve_model import hub_folder, resolve_source
from medusa_dist.model.support_check import output_width, read_config

_WANTED = ["*.safetensors", "*.pt", "*.bin", "config.json"]
_PREFERRED = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")


def convert_heads(source: str, target: Path, base: str, trust_tensors: bool = False) -> tuple[HeadsFile, Published]:
    """Read heads from a file, a folder or a hub id, and write them to the folder `target` as heads of the model `base`.

    trust_tensors: use the tensors where config.json has other counts. Returns the written file, and what was found.
    Raises HeadsError for heads that cannot be read or do not fit the base model, ModelError for a base model that is
    missing.
    """
    if (target / DESCRIPTION).exists():
        raise HeadsError(f"heads: {target} already holds a head file; give another folder, or remove it first")
    tensors, config = read_published(source)
    found = recognise(tensors)
    if not trust_tensors:
        check_config(config, found)
    folder = resolve_source(base)
    facts = read_config(folder)
    about = BaseModelFacts(
        name=base, fingerprint=fingerprint(folder), hidden_size=output_width(facts), vocab_size=facts.vocab_size
    )
    origin = {"converted_from": source, "layout": found.layout}
    if "base_model_name_or_path" in config:
        origin["made_for"] = str(config["base_model_name_or_path"])
    # vLLM's config belongs to the heads; elsewhere the key belongs to the base model.
    scale = float(config.get("logit_scale") or 1.0) if config.get("model_type") == "medusa" else 1.0
    file = as_heads_file(found, tensors, about, origin, scale)
    file.save(target)
    return file, found


def as_heads_file(
    found: Published,
    tensors: Mapping[str, Tensor],
    base: BaseModelFacts,
    origin: dict[str, Any],
    logit_scale: float = 1.0,
) -> HeadsFile:
    """The same heads under our names. Raises HeadsError naming what does not fit the base model."""
    ours = {name: tensors[theirs] for name, theirs in found.names.items()}
    vocab_size, token_map = base.vocab_size, None
    if found.token_map is not None:
        ids = tensors[found.token_map].flatten().long()
        token_map, order = ids.sort()  # ours are ascending
        vocab_size = token_map.numel()
        for name in [name for name in ours if name.endswith("lm_head.weight")]:
            if len(ours[name]) > vocab_size:  # rows of all tokens; only those in the map are used
                _fit(name, ours[name], (base.vocab_size, base.hidden_size), base)
                ours[name] = ours[name][token_map]
                continue
            _fit(name, ours[name], (vocab_size, base.hidden_size), base)
            ours[name] = ours[name][order]
        ours["draft_vocab"] = token_map.int()
    first = ours["heads.0.blocks.0.weight"]
    for name, tensor in ours.items():
        if name.endswith(".blocks.0.weight"):
            _fit(name, tensor, (base.hidden_size, base.hidden_size), base)
        elif name.endswith("lm_head.weight"):
            _fit(name, tensor, (vocab_size, base.hidden_size), base)
    try:
        about = HeadsDescription(
            form="hidden",
            num_heads=found.num_heads,
            num_blocks=found.num_blocks,
            bias=found.has_bias,
            lm_head="own" if found.has_own_outputs else "shared",
            draft_vocab_size=None if token_map is None else vocab_size,
            offsets=tuple(range(1, found.num_heads + 1)),
            logit_scale=logit_scale,
            dtype=dtype_name(first.dtype),
            base=base,
            training=origin,
        )
    except (ValidationError, KeyError) as error:
        reason = explain_validation(error) if isinstance(error, ValidationError) else f"tensors of type {first.dtype}"
        raise HeadsError(f"heads: not representable in our format: {reason}") from None
    # Blocks that are one shared layer in the source share memory, which safetensors refuses to store twice.
    return HeadsFile(about, {name: tensor.clone() for name, tensor in ours.items()})


def _fit(name: str, tensor: Tensor, shape: tuple[int, int], base: BaseModelFacts) -> None:
    if tuple(tensor.shape) != shape:
        raise HeadsError(
            f"heads: {name} is {list(tensor.shape)}, but for {base.name} (hidden size {base.hidden_size}, vocabulary "
            f"{base.vocab_size}) it must be {list(shape)}; were these heads made for another model?"
        )


def read_published(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, folder or hub id that may be heads, and the config.json next to them ({} if none)."""
    path = Path(source).expanduser()
    if not path.exists():
        path = hub_folder(source, None, _WANTED)
    folder = path if path.is_dir() else path.parent
    files = _head_files(path) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    return tensors, _read_json(folder / "config.json")


def _head_files(folder: Path) -> list[Path]:
    """The usual head file, else all safetensors (a whole model that contains heads), else all pickles."""
    for name in _PREFERRED:
        if (folder / name).is_file():
            return [folder / name]
    files = sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.pt"), *folder.glob("*.bin")])
    if not files:
        raise HeadsError(f"heads: {folder} has no .safetensors, .pt or .bin file")
    return files


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors that may belong to heads; the layers of a whole model are not read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if not _is_of_base(name)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise HeadsError(f"heads: {file} cannot be read: {error}") from None


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """A state dict. A file that holds anything but data is refused without being loaded."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=None)
    except UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise HeadsError(f"heads: {file} holds more than tensors and was not loaded: {first}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise HeadsError(f"heads: {file} cannot be read: {error}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise HeadsError(f"heads: {file} is not a state dict (names and tensors)")
    return {str(name): tensor for name, tensor in state.items() if not _is_of_base(str(name))}


def _is_of_base(name: str) -> bool:
    return name.startswith(("model.", "transformer.", "lm_head.")) and "medusa" not in name


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HeadsError(f"heads: {file} is not JSON: {error}") from None
    return read if isinstance(read, dict) else {}
