"""Size of a rank's part of a model from shapes only, by the loader on the meta device.

Owns the sizes of a model that is not loaded. Not here: the sharding (build.py, sharding_plans.py), where shapes come
from (safetensors_headers.py), what else needs memory (check/memory.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medusa_dist.model.build import Builder, empty_model
from medusa_dist.model.sharding_plans import HeadShape
from medusa_dist.model.source.checkpoint import Checkpoint, Cut, StoredTensor
from medusa_dist.model.support_check import model_class
from medusa_dist.ops.cpu.packed_weights import INT8, int8_bytes, packing_refusal
from medusa_dist.ops.linear import Linear
from medusa_dist.ops.tp_group import TPGroup

Shapes = dict[str, tuple[int, ...]]  # stored name -> shape
_META = torch.device("meta")


@dataclass(frozen=True)
class RankSize:
    """One rank's part. weight_bytes equals ShardedModel.weight_bytes() after loading.

    dense_bytes: read completely in every step. expert_bytes: experts of a mixture, of which only the chosen ones are
    read.
    dense_params, expert_params: of matrices; a row costs 2 operations for each (experts: for each chosen one).
    widest: features of the widest layer. input_shape, output_shape: of the full vocabulary matrices.
    """

    weight_bytes: int
    dense_bytes: int
    expert_bytes: int
    dense_params: int
    expert_params: int
    num_experts: int
    widest: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_shard: int
    input_shape: tuple[int, int]
    output_shape: tuple[int, int]


class HeaderCheckpoint(Checkpoint):
    """Stored tensors of which only the shapes are known: tensors read from it have no values."""

    def __init__(self, folder: Path, shapes: Shapes) -> None:  # the base class would look for the files
        self.folder = folder
        self.file_of = dict.fromkeys(shapes, "")
        self.bytes_read = 0
        self._shapes = shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self._shapes[name]

    def read(self, stored: StoredTensor, cut: Cut | None, dtype: torch.dtype, lend: bool = False) -> Tensor:
        """A tensor of the shape that Checkpoint.read would return, on the meta device."""
        shape = self.shape_of(stored)
        return torch.empty(shape if cut is None else cut.shape_of(shape), dtype=dtype, device=_META)


class _SizingBuilder(Builder):
    """The loader's walk over a model, without values."""

    def __init__(self, *args: Any, packs_later: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._packs_later = packs_later
        self.shared_bytes = 0  # counted once per name, but stored once

    def _make_buffers(self) -> None:
        """Buffers already have their shapes and need no values here."""

    def _read(self, parameter: Tensor, cut: Cut | None, lend: bool = False) -> Tensor:
        is_tied = (id(parameter), cut) in self._tied
        tensor = super()._read(parameter, cut, lend)
        if is_tied and not (self._packs_later and tensor.dim() == 2):  # a packed matrix is a separate copy
            self.shared_bytes += _bytes([tensor])
        return tensor


def own_shapes(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> Shapes:
    """What a checkpoint of this config would hold, if there is none to inspect: the model's own parameters."""
    model = empty_model(model_class(config, trust_remote_code), config, dtype, _META)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def rank_size(
    config: Any,
    checkpoint: Checkpoint,
    parallel: TPGroup,
    dtype: torch.dtype,
    device_type: str,
    trust: bool = False,
    quantization: str = "none",
) -> RankSize:
    """The part of rank `parallel.rank`. device_type: "cpu" packs linear layers where `dtype` allows it.

    Raises ModelError, as loading would, if config and stored shapes do not match.
    """
    model = empty_model(model_class(config, trust), config, dtype, _META)
    packs = device_type == "cpu" and packing_refusal(torch.device("cpu"), dtype) is None
    builder = _SizingBuilder(model, checkpoint, parallel, dtype=dtype, device=_META, packs=False, packs_later=packs)
    builder.fill()
    heads = HeadShape.of(config, parallel)
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    experts = [p for p in model.parameters() if p.dim() == 3]
    lookups = [p for m in model.modules() for p in m.parameters(recurse=False) if p.dim() == 2]
    all_bytes, expert_bytes = _bytes([*model.buffers(), *model.parameters()]), _bytes(experts)
    if quantization == INT8:
        all_bytes -= sum(m.out_features * m.in_features * dtype.itemsize - int8_bytes(m.weight) for m in linears)
    return RankSize(
        weight_bytes=all_bytes - builder.shared_bytes,
        dense_bytes=all_bytes - expert_bytes - _bytes(lookups),
        expert_bytes=expert_bytes,
        dense_params=sum(m.out_features * m.in_features for m in linears),
        expert_params=sum(p.numel() for p in experts),
        num_experts=max((int(p.shape[0]) for p in experts), default=0),
        widest=max((m.out_features for m in linears if m is not builder.output_head), default=0),
        num_heads=heads.local()["num_heads"],
        num_kv_heads=heads.local()["num_kv_heads"],
        head_dim=heads.head_dim,
        vocab_shard=parallel.vocab_shard(builder.vocab_size)[2],
        input_shape=_matrix(builder, "input"),
        output_shape=_matrix(builder, "output"),
    )


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _matrix(builder: Builder, which: str) -> tuple[int, int]:
    rows, width = builder.checkpoint.shape_of(builder.vocab_rows[which])
    return rows, width
