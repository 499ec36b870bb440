"""Reading a folder of draft heads in any form that is served, from its .safetensors files.

Owns the files. Not here: our own format (medusa/heads/heads_file.py), names and checks of published ones
(medusa/heads/published_heads.py, medusa/eagle3/checkpoint.py), their recognition (formats.py), .pt files
(heads_tools/convert_heads.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medusa_dist.config import explain_validation
from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File, eagle3_names, eagle3_shapes
from medusa_dist.medusa.eagle3.config import parse_eagle3_config
from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import (
    DESCRIPTION,
    TENSORS,
    HeadsFile,
    described_heads,
    dtype_name,
    read_description,
    read_heads,
)
from medusa_dist.medusa.heads.published_heads import Published, check_config, recognise
from medusa_dist.medusa.published.formats import Format, detect, require_served

AnyHeads = HeadsFile | Eagle3File
CONFIG = "config.json"
WANTED = ["*.safetensors", DESCRIPTION, CONFIG]  # files of a hub id
_ALWAYS_READ = ("d2t", "t2d", "token_map")  # small, and checked


def read_any_heads(folder: Path, base: BaseModelFacts, shapes_only: bool = False) -> AnyHeads:
    """Recognise and read the heads in a folder. base: the model that will be served.

    shapes_only: read only the headers; vocabulary maps alone have values. Raises HeadsError naming file and problem.
    """
    if (folder / DESCRIPTION).is_file() or (folder / TENSORS).is_file():
        return read_heads(folder, shapes_only)
    config = read_json(folder / CONFIG)
    shapes = _shapes(folder)
    found = detect(config, list(shapes))
    require_served(found)
    if found is Format.EAGLE3:
        named = eagle3_names(list(shapes))
        return Eagle3File(parse_eagle3_config(config), _read(folder, shapes, named, shapes_only))
    about = recognise(shapes)
    check_config(config, about)
    wanted = {name: name for name in (*about.names.values(), *([about.token_map] if about.token_map else []))}
    tensors = _read(folder, shapes, wanted, shapes_only)
    return as_heads_file(about, tensors, base, {"layout": about.layout}, logit_scale_of(config))


def described_any_heads(folder: Path) -> AnyHeads | None:
    """The heads that heads.json or config.json alone implies, without values. None: it does not say enough."""
    if (folder / DESCRIPTION).is_file():
        return described_heads(read_description(folder))
    config = read_json(folder / CONFIG)
    found = detect(config, [])
    require_served(found)
    if found is not Format.EAGLE3:
        return None
    about = parse_eagle3_config(config)
    shapes = {name: shape for name, shape in eagle3_shapes(about).items() if not name.endswith(".bias")}
    shapes |= {"d2t": (about.draft_vocab_size,)}
    return Eagle3File(about, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def logit_scale_of(config: Mapping[str, Any]) -> float:
    """Scale of the logits of Medusa heads: vLLM's config belongs to the heads; elsewhere the key is the base's."""
    return float(config.get("logit_scale") or 1.0) if config.get("model_type") == "medusa" else 1.0


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


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; {} if there is no such file. Raises HeadsError."""
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HeadsError(f"heads: {file} is not JSON: {error}") from None
    return read if isinstance(read, dict) else {}


def _shapes(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Name -> file and shape of all tensors in the folder's .safetensors files."""
    lone = folder / "medusa_lm_head.safetensors"  # beside the shards of a whole model, the heads alone
    files = [lone] if lone.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted([*folder.glob("*.pt"), *folder.glob("*.bin")])
        way = "; medusa-dist convert-heads reads its .pt and .bin files" if pickles else ""
        raise HeadsError(
            f"heads: {folder} has no .safetensors file: heads are a folder with {DESCRIPTION} and {TENSORS}, or "
            f"published ones with {CONFIG} and *.safetensors{way}"
        )
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= {name: (file, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise HeadsError(f"heads: {file} cannot be read: {error}") from None
    return found


def _read(
    folder: Path, shapes: Mapping[str, tuple[Path, tuple[int, ...]]], names: Mapping[str, str], shapes_only: bool
) -> dict[str, Tensor]:
    """The tensors `names` (ours -> theirs) under our names."""
    tensors: dict[str, Tensor] = {}
    try:
        for file in sorted({path for path, _ in shapes.values()}):
            with safe_open(file, framework="pt") as opened:
                for ours, theirs in names.items():
                    path, shape = shapes[theirs]
                    if path != file:
                        continue
                    blank = shapes_only and ours.split(".")[-1] not in _ALWAYS_READ
                    tensors[ours] = torch.empty(shape, device="meta") if blank else opened.get_tensor(theirs)
    except (SafetensorError, OSError) as error:
        raise HeadsError(f"heads: {folder} cannot be read: {error}") from None
    return tensors
