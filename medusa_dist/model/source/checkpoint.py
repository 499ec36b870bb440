"""Slice reads from a model folder's safetensors.

Owns the index of stored tensors, the mapping from a model's parameter names to them, and slice reads: a rank reads only
its own rows or columns. Not here: which slices (model/sharding_plans.py), where they go (model/build.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from medusa_dist.errors import ModelError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Cut:
    """The part of a tensor that a rank holds: index ranges along `dim`, concatenated, then `pad` zero rows."""

    dim: int
    ranges: tuple[tuple[int, int], ...]
    pad: int = 0

    @property
    def size(self) -> int:
        """Extent of the part along `dim`."""
        return sum(stop - start for start, stop in self.ranges) + self.pad

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the part of a tensor of `shape`."""
        return (*shape[: self.dim], self.size, *shape[self.dim + 1 :])

    def apply(self, tensor: Tensor) -> Tensor:
        """The part of a full tensor; the plain reference for `Checkpoint.read`."""
        parts = [tensor.narrow(self.dim, start, stop - start) for start, stop in self.ranges]
        if self.pad:
            parts.append(torch.zeros_like(tensor).narrow(self.dim, 0, 1).repeat_interleave(self.pad, self.dim))
        return torch.cat(parts, self.dim)


@dataclass(frozen=True)
class StoredTensor:
    """Where a parameter's values are stored: stacks[e] = names joined along dim 0; more than one stack adds a leading
    dim.

    An ordinary parameter is one stack of one name. A mixture's experts are one stack per expert, of two names each
    where gate and up are stored separately and used joined.
    """

    stacks: tuple[tuple[str, ...], ...]
    stacked: bool = False


class Checkpoint:
    """The stored tensors of one model folder. Opens files lazily and reads only what is requested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file_of = _index(folder)
        self._open: dict[str, Any] = {}  # safe_open handles; safetensors has no types for what they return
        self.bytes_read = 0

    def names(self) -> list[str]:
        """All stored names, in natural order (layer 2 before layer 10)."""
        return sorted(self.file_of, key=dot_natural_key)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """safetensors' name for a stored tensor's type, such as `F32`."""
        return str(self._slice(name).get_dtype())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a stored tensor, in its stored dtype."""
        return self._part(name, 0, start, stop)

    def shape_of(self, stored: StoredTensor) -> tuple[int, ...]:
        """Shape of a full parameter."""
        first = stored.stacks[0]
        shape = self.shape(first[0])
        if len(first) > 1:
            shape = (sum(self.shape(name)[0] for name in first), *shape[1:])
        return (len(stored.stacks), *shape) if stored.stacked else shape

    def read(self, stored: StoredTensor, cut: Cut | None, dtype: torch.dtype, lend: bool = False) -> Tensor:
        """A copy, in `dtype`, of the part of a parameter given by `cut` (None = all).

        lend: the caller only reads it and drops it before `close`, so a plain range of rows is not copied.
        """
        shape = self.shape_of(stored)
        if lend and not stored.stacked and (cut is None or (len(cut.ranges) == 1 and not cut.pad)):
            (start, stop) = (0, shape[0]) if cut is None else cut.ranges[0]
            return self._part(stored.stacks[0][0], 0 if cut is None else cut.dim, start, stop).to(dtype)
        out = torch.empty(shape if cut is None else cut.shape_of(shape), dtype=dtype)
        if not stored.stacked:
            self._fill(out, stored.stacks[0], cut)
            return out
        inner = None if cut is None else Cut(cut.dim - 1, cut.ranges, cut.pad)
        for expert, names in zip(out, stored.stacks, strict=True):
            self._fill(expert, names, inner)
        return out

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        self._open.clear()

    def _fill(self, out: Tensor, names: tuple[str, ...], cut: Cut | None) -> None:
        """Copy the part of `names` (joined along dim 0) given by `cut` into `out`."""
        if not out.dim():
            out.copy_(self._file(names[0]).get_tensor(names[0]))
            return
        cut = cut or Cut(0, ((0, out.shape[0]),))
        assert cut.dim == 0 or len(names) == 1, "joined tensors must be sharded along the dimension they are joined in"
        done = 0
        for start, stop in cut.ranges:
            offset = 0
            for name in names:
                size = self.shape(name)[cut.dim]
                low, high = max(start - offset, 0), min(stop - offset, size)
                if low < high:
                    out.narrow(cut.dim, done, high - low).copy_(self._part(name, cut.dim, low, high))
                    done += high - low
                offset += size
        out.narrow(cut.dim, done, out.shape[cut.dim] - done).zero_()

    def _part(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        part: Tensor = self._slice(name)[(slice(None),) * dim + (slice(start, stop),)]
        self.bytes_read += part.numel() * part.element_size()
        return part

    def _file(self, name: str) -> Any:
        file = self.file_of[name]
        if file not in self._open:
            try:
                opened: Any = safe_open(str(self.folder / file), framework="pt")
                self._open[file] = opened.__enter__()
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{self.folder / file} cannot be read: {error}; download the model again") from None
        return self._open[file]

    def _slice(self, name: str) -> Any:
        return self._file(name).get_slice(name)


def _index(folder: Path) -> dict[str, str]:
    """Stored name -> file name."""
    if (folder / _INDEX).is_file():
        try:
            file_of = json.loads((folder / _INDEX).read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            raise ModelError(f"{folder / _INDEX} is not a safetensors index: {error!r}") from None
        missing = sorted({file for file in file_of.values() if not (folder / file).is_file()})
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing[:3])} of its {_INDEX}; download the model again")
        return dict(file_of)
    if not (folder / _SINGLE).is_file():
        raise ModelError(no_safetensors(folder))
    try:
        with safe_open(str(folder / _SINGLE), framework="pt") as file:
            return dict.fromkeys(file.keys(), _SINGLE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / _SINGLE} cannot be read: {error}; download the model again") from None


def no_safetensors(folder: Path) -> str:
    """Error message for a folder without safetensors."""
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has its weights as {pickles[0]}, and only safetensors are supported (a pickle can run code); "
            "convert it once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    return f"{folder} has neither {_SINGLE} nor {_INDEX}"


def map_parameters(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Parameter name of the model -> where its values are stored, by transformers' own renames.

    Raises ModelError for a conversion other than stacking experts and joining their gate and up.
    """
    transforms = get_model_conversion_mapping(model)
    renames = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    own = model.state_dict()
    found: dict[str, dict[str, list[str]]] = {}
    for name in checkpoint.names():
        target, pattern = rename_source_key(name, renames, converters, model.base_model_prefix, own)
        found.setdefault(target, {}).setdefault(pattern or "", []).append(name)
    mapped = {}
    for target, by_pattern in found.items():
        if "" in by_pattern:
            mapped[target] = StoredTensor(((by_pattern[""][-1],),))
            continue
        converter = next(c for c in converters if set(by_pattern) <= set(c.source_patterns))
        mapped[target] = _stacked(target, converter, by_pattern)
    return mapped


def _stacked(target: str, converter: WeightConverter, by_pattern: dict[str, list[str]]) -> StoredTensor:
    """One stack per expert; the converter's operations say whether gate and up are joined."""
    operations = list(converter.operations)
    merges = len(operations) > 0 and isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
    joins = len(operations) == 2 and isinstance(operations[1], Concatenate) and operations[1].dim == 1
    columns = [by_pattern.get(pattern, []) for pattern in converter.source_patterns]
    if not merges or not (len(operations) == 1 or joins) or len({len(c) for c in columns}) != 1:
        words = ", ".join(type(o).__name__ for o in operations)
        raise ModelError(
            f"the stored form of {target} needs a conversion that is not supported ({words}); load the model with "
            "transformers and save it again in its converted form"
        )
    return StoredTensor(tuple(zip(*columns, strict=True)), stacked=True)
