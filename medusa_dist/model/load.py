"""Loads a transformers model sharded: built without weights, then filled by slice reads.

Owns `ShardedModel`, the one forward pass that the worker calls, `load_model`, and `Outline`, which needs no weights.
Not here: what is supported (support_check.py), how it is sharded (sharding_plans.py), how layers are built (build.py).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.attention_bridge import check_attention
from medusa_dist.model.aux_hidden_states import tapped_layers, tapping
from medusa_dist.model.build import Builder, empty_model
from medusa_dist.model.context_length import context_length
from medusa_dist.model.fused_layers import LayerFuser
from medusa_dist.model.fused_modules import LayerKernels
from medusa_dist.model.sharding_plans import HeadShape, check_tp_size, legal_tp_sizes
from medusa_dist.model.source.checkpoint import Checkpoint, StoredTensor
from medusa_dist.model.support_check import check_servable, layer_windows, model_class, read_config
from medusa_dist.ops.cpu.arrays import KERNEL_DTYPES
from medusa_dist.ops.cpu.packed_weights import INT8, Int8Weight, PackedWeight, WeightForm, int8_refusal
from medusa_dist.ops.dtypes import dtype_name
from medusa_dist.ops.linear import Linear
from medusa_dist.ops.tp_group import TPGroup

__all__ = [
    "Outline",
    "ShardedModel",
    "check_servable",
    "legal_tp_sizes",
    "load_full_rows",
    "load_model",
    "read_outline",
]

logger = logging.getLogger(__name__)
_BLOCK_ROWS = 8192  # rows of a vocabulary matrix read at a time


@dataclass(frozen=True, eq=False)
class Outline:
    """What is known of a model before its weights are read. dtype, device: of tensors that are read from it.

    hidden_size: width of the rows that the output matrix reads.
    """

    config: Any
    num_layers: int
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    checkpoint: Checkpoint
    vocab_rows: dict[str, StoredTensor]  # where the full "input" and "output" vocabulary matrices are stored

    @property
    def layer_width(self) -> int:
        """Width of the hidden states between layers, which differs from hidden_size for some OPT models."""
        return int(self.config.hidden_size)


@dataclass(frozen=True, eq=False)
class ShardedModel(Outline):
    """One rank's part of a model.

    num_heads, num_kv_heads: of this rank. vocab_shard: columns of this rank's logits, ceil(V / world_size) on every
    rank; column j is token vocab_start + j, and is padding unless that is < vocab_size. max_position: longest context
    in tokens. tapped: the aux layers, in order, whose output is returned as well.
    """

    parallel: TPGroup
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_start: int
    vocab_shard: int
    max_position: int
    module: PreTrainedModel
    output_head: nn.Module
    tapped: tuple[nn.Module, ...] = ()

    def forward(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One pass over T tokens, all sequences flattened; attention calls `attention_context`'s function.

        input_ids, positions: [T] int64. rows: [R] int64, the tokens whose logits are needed.
        -> logits [R, vocab_shard] as the model computes them (including softcap and scale), and what the heads read:
        hidden [R, H], the input of the output matrix (after the final norm), followed by the outputs of the aux layers,
        [R, H + number of aux layers * layer width].
        """
        logits, hidden, tapped = self._pass(input_ids, positions, rows, rows)
        return logits, torch.cat([hidden, *tapped], dim=-1) if tapped else hidden

    def forward_all_rows(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same pass -> logits [R, vocab_shard], and what the heads read of all T tokens, [T, H + aux layers]."""
        logits, hidden, tapped = self._pass(input_ids, positions, rows, slice(None))
        return logits, torch.cat([hidden, *tapped], dim=-1)

    def _pass(
        self, input_ids: Tensor, positions: Tensor, rows: Tensor, read_rows: Tensor | slice
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """-> logits [R, vocab_shard], read_rows of the input of the output matrix and of each aux layer's output."""
        taken: list[Tensor] = []

        def take_rows(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            selected = inputs[0][:, rows]
            taken.append(selected if read_rows is rows else inputs[0][:, read_rows])
            return selected

        # Rows are selected in a pre-forward hook on the output matrix, which every architecture has; not every forward
        # supports `logits_to_keep`, and the Medusa heads need the same rows.
        hook = self.output_head.register_forward_pre_hook(take_rows)
        try:
            with tapping(self.tapped, read_rows) as tapped:
                output = self.module(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)
        finally:
            hook.remove()
        assert len(taken) == 1, "the output matrix was not used exactly once"
        assert len(tapped) == len(self.tapped), "an aux layer was not used exactly once"
        return output.logits[0], taken[0][0], tapped

    def weight_bytes(self) -> int:
        """Bytes of this rank's parameters and buffers, including packed ones."""
        # By address: tied matrices share their memory.
        plain = {t.data_ptr(): t for t in (*self.module.buffers(), *self.module.parameters())}
        total: int = sum(t.numel() * t.element_size() for t in plain.values())
        return total + sum(m.packed_bytes for m in self.module.modules() if isinstance(m, Linear))


def load_model(  # noqa: PLR0913 (all but the folder by name)
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    parallel: TPGroup,
    prepack: bool = True,
    trust_remote_code: bool = False,
    aux_layers: Sequence[int] = (),
    kernels: LayerKernels | None = None,
    quantization: str = "none",
) -> ShardedModel:
    """Load this rank's part of the model in `folder`; called by all ranks together (it ends with a probe pass).

    prepack: use oneDNN's packed linear layers on a CPU; False keeps plain ones (for comparison in tests). aux_layers:
    ascending, whose outputs this rank needs. kernels: for small operations where the model's modules are of a known
    form. quantization: "int8" rounds the weights of linear layers to 8 bits (CPU).
    Peak memory is the rank's part and one more layer. Raises ModelError or ConfigError.
    """
    config = read_config(folder, trust_remote_code)
    found = model_class(config, trust_remote_code)
    check_tp_size(config, parallel.world_size)
    checkpoint = Checkpoint(folder)
    module = empty_model(found, config, dtype, device)
    heads = HeadShape.of(config, parallel)
    fuser = None if kernels is None else LayerFuser(kernels, int(config.hidden_size), heads.head_dim, dtype, device)
    finish = partial(_finish, fuser, _weight_form(quantization, device, dtype) if prepack else None)
    builder = Builder(module, checkpoint, parallel, dtype=dtype, device=device, packs=prepack, finish=finish)
    with torch.inference_mode():
        builder.fill()
    checkpoint.close()
    start, _, shard = parallel.vocab_shard(builder.vocab_size)
    model = ShardedModel(
        config=config,
        parallel=parallel,
        num_layers=int(config.num_hidden_layers),
        num_heads=heads.local()["num_heads"],
        num_kv_heads=heads.local()["num_kv_heads"],
        head_dim=heads.head_dim,
        hidden_size=builder.output_width,
        vocab_size=builder.vocab_size,
        vocab_start=start,
        vocab_shard=shard,
        max_position=context_length(config).tokens,
        dtype=dtype,
        device=device,
        module=module,
        output_head=builder.output_head,
        checkpoint=checkpoint,
        vocab_rows=builder.vocab_rows,
        tapped=tapped_layers(module, int(config.num_hidden_layers), aux_layers),
    )
    with torch.inference_mode():
        shape = (model.num_heads, model.num_kv_heads, model.head_dim)
        check_attention(model.forward, shape, layer_windows(config), device)
    _log(model)
    return model


def _log(model: ShardedModel) -> None:
    where = model.config.model_type, model.parallel.rank, model.parallel.world_size
    megabytes = model.weight_bytes() / 1e6, model.checkpoint.bytes_read / 1e6
    logger.info("loaded %s, rank %d of %d: %.0f MB, read %.0f MB", *where, *megabytes)


_Form = Callable[[Tensor], WeightForm | None]


def _finish(fuser: LayerFuser | None, form: _Form | None, part: nn.Module) -> nn.Module:
    """What stands for a filled part of the model: its known modules fused, its linear layers packed."""
    finished = part if fuser is None else fuser.fuse(part)
    for layer in finished.modules():
        if form is not None and isinstance(layer, Linear):
            layer.pack(form)
    return finished


def _weight_form(quantization: str, device: torch.device, dtype: torch.dtype) -> _Form:
    """What packs the weights of linear layers. Raises ConfigError if it does not exist there."""
    if quantization != INT8:
        return PackedWeight.pack
    reason = int8_refusal() if device.type == "cpu" else "there are no 8-bit products for GPUs yet"
    if reason is None and dtype not in KERNEL_DTYPES:
        reason = f"it goes with dtype float32 or bfloat16, not {dtype_name(dtype)}"
    if reason is not None:
        raise ConfigError(f"quantization: int8 is not possible here: {reason}; use none")
    return Int8Weight


def read_outline(folder: Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> Outline:
    """The model in `folder` without its weights. Raises ModelError."""
    config = read_config(folder, trust_remote_code)
    checkpoint, meta = Checkpoint(folder), torch.device("meta")
    module = empty_model(model_class(config, trust_remote_code), config, dtype, meta)
    builder = Builder(module, checkpoint, TPGroup(), dtype=dtype, device=meta, packs=False)
    return Outline(
        config=config,
        num_layers=int(config.num_hidden_layers),
        hidden_size=builder.output_width,
        vocab_size=builder.vocab_size,
        dtype=dtype,
        device=device,
        checkpoint=checkpoint,
        vocab_rows=builder.vocab_rows,
    )


def load_full_rows(model: Outline, which: Literal["input", "output"], ids: Tensor | None = None) -> Tensor:
    """Rows of the full input embedding or output matrix, whatever part of it this rank holds.

    ids: [N] int64, None = all in order. -> [N, H] in the model's dtype on its device, read from the checkpoint in
    blocks, without the scaling that some models apply after the lookup. Raises ModelError for an id out of range.
    """
    (name,) = model.vocab_rows[which].stacks[0]
    num_rows, width = model.checkpoint.shape(name)
    wanted = torch.arange(num_rows) if ids is None else ids.cpu()
    if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < num_rows:
        raise ModelError(f"requested ids are outside the {num_rows} rows of {name}")
    out = torch.empty((wanted.numel(), width), dtype=model.dtype)
    for start in range(0, num_rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, num_rows)
        here = ((wanted >= start) & (wanted < stop)).nonzero().flatten()
        if here.numel():
            block = model.checkpoint.rows(name, start, stop)
            out[here] = block[wanted[here] - start].to(model.dtype)
    return out.to(model.device)
