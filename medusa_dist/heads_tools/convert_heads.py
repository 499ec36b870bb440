"""`medusa-dist convert-heads`: converts published Medusa heads to our format, and EAGLE-3 heads in .bin to safetensors.

Owns the files on both sides. Not here: their layouts (medusa/heads/published_heads.py, medusa/eagle3/checkpoint.py),
our format (medusa/heads/heads_file.py), serving published heads as they are (medusa/published/reader.py).
The only place that reads .pt files, which are pickles: with weights_only, so that a file can create tensors and nothing
else. Serving reads only safetensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File, eagle3_names
from medusa_dist.medusa.eagle3.config import parse_eagle3_config
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.heads_file import DESCRIPTION, HeadsFile
from medusa_dist.medusa.heads.published_heads import Published, check_config, recognise
from medusa_dist.medusa.published.formats import Format, detect, require_served
from medusa_dist.medusa.published.reader import CONFIG, as_heads_file, logit_scale_of, read_json
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.source.resolve_model import hub_folder, resolve_source
from medusa_dist.model.support_check import output_width, read_config

_WANTED = ["*.safetensors", "*.pt", "*.bin", "config.json"]
_PREFERRED = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")


def convert_heads(
    source: str, target: Path, base: str, trust_tensors: bool = False
) -> tuple[HeadsFile, Published] | Eagle3File:
    """Read heads from a file, a folder or a hub id, and write them to the folder `target` as heads of the model `base`.

    trust_tensors: use the tensors where config.json has other counts. Returns the written file, and what was found;
    EAGLE-3 heads keep their format. Raises HeadsError for heads that cannot be read or do not fit the base model,
    ModelError for a base model that is missing.
    """
    if (target / DESCRIPTION).exists() or (target / CONFIG).exists():
        raise HeadsError(f"heads: {target} already holds a head file; give another folder, or remove it first")
    tensors, config = read_published(source)
    if (form := detect(config, list(tensors))) is Format.EAGLE3:
        return _convert_eagle3(tensors, config, target, base)
    require_served(form)
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
    file = as_heads_file(found, tensors, about, origin, logit_scale_of(config))
    file.save(target)
    return file, found


def _convert_eagle3(tensors: Mapping[str, Tensor], config: Mapping[str, Any], target: Path, base: str) -> Eagle3File:
    """The same tensors as safetensors, under the names of speculators, with the same config.json."""
    names = eagle3_names(list(tensors))
    ours = {name: tensors[theirs] for name, theirs in names.items()}
    file = Eagle3File(parse_eagle3_config(config), ours)
    facts = read_config(resolve_source(base))
    file.check_base(output_width(facts), facts.vocab_size, None, False)
    file.check_layers(int(facts.num_hidden_layers), int(facts.hidden_size))
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in ours.items()}, target / "model.safetensors")
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return file


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
    return tensors, read_json(folder / CONFIG)


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
    """The tensors that may belong to heads; the layers of a whole model that contains heads are not read."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            whole = any("medusa" in name for name in names)
            return {name: opened.get_tensor(name) for name in names if not (whole and _is_of_base(name))}
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
    return {str(name): tensor for name, tensor in state.items()}


def _is_of_base(name: str) -> bool:
    return name.startswith(("model.", "transformer.", "lm_head.")) and "medusa" not in name
