"""Sharded layers: column- and row-parallel linear, vocabulary embedding, packed CPU weights.

Owns what a rank computes in a sharded layer. Not here: collectives (tp_group.py), which layer is sharded how
(model/sharding_plans.py).
"""

import functools
import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.ops.tp_group import TPGroup

logger = logging.getLogger(__name__)


class PackedWeight:
    """A weight [O, I] in oneDNN's own blocked layout, and the linear product that uses it. CPU, float32 or bfloat16.

    Faster than `F.linear` for few rows (MKL is slow for skinny matrix products), and in float32 a row's result does not
    depend on how many other rows are computed with it. The operators are private to PyTorch, so `pack` may refuse.
    """

    def __init__(self, packed: Tensor) -> None:
        self.packed = packed

    @staticmethod
    def pack(weight: Tensor) -> "PackedWeight | None":
        """The packed copy, or None where this build, device or dtype does not support it; the reason is logged once."""
        refusal = packing_refusal(weight.device, weight.dtype)
        if refusal is not None:
            if weight.device.type == "cpu":
                _log_refusal(refusal)
            return None
        return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_PACKED_FOR))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., I] -> [..., O]; the bias is added in the same operator."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return y


_ROWS_PACKED_FOR = 8  # only a hint for the blocking; results do not depend on it


@functools.cache
def packing_refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why weights of this kind cannot be prepacked; None if they can. Tries it once against F.linear."""
    if device.type != "cpu":
        return f"{device.type} does not use it"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"{dtype} is not supported"
    x, weight = torch.linspace(-1, 1, 64).view(2, 32).to(dtype), torch.linspace(-1, 1, 480).view(15, 32).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_PACKED_FOR)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        return str(error).splitlines()[0]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return None if torch.allclose(y, F.linear(x, weight), atol=tolerance, rtol=tolerance) else "its results are wrong"


@functools.cache
def _log_refusal(reason: str) -> None:
    logger.warning("linear layers are not prepacked, which makes a CPU slower: %s", reason)


class Linear(nn.Module):
    """y = x W^T + b with this rank's rows of W: a column-parallel layer, or a replicated one.

    With `prepack`, where the CPU supports it, the plain weight is dropped and `weight` is None; otherwise F.linear
    runs.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, prepack: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = PackedWeight.pack(weight) if prepack and weight.numel() else None
        self.register_buffer("weight", weight if self._packed is None else None)
        self.register_buffer("bias", bias)

    @property
    def is_packed(self) -> bool:
        """Whether the weight is in oneDNN's layout."""
        return self._packed is not None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        return self._multiply(x, self.bias)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._packed is not None:
            return self._packed.linear(x, bias)
        assert self.weight is not None
        return F.linear(x, self.weight, bias)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in={self.in_features}, out={self.out_features}, packed={self.is_packed}"


class RowLinear(Linear):
    """y = sum over ranks of x_r W_r^T, + b: this rank's columns of W times this rank's part of x. The bias is added
    once, after the sum, so every rank gets the same bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None, prepack: bool, parallel: TPGroup) -> None:
        super().__init__(weight, bias, prepack)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] of this rank -> [..., O], the same on all ranks."""
        if self.parallel.world_size == 1:
            return self._multiply(x, self.bias)
        y = self.parallel.all_reduce(self._multiply(x, None))
        return y if self.bias is None else y + self.bias


class VocabEmbedding(nn.Module):
    """Vocabulary-parallel embedding: each rank looks up its own ids, the rows of others are zero, and the sum is exact.

    `local` is the model's own embedding module with this rank's rows; whatever else it does (scaling) is kept.
    """

    def __init__(self, local: nn.Module, vocab_size: int, parallel: TPGroup) -> None:
        super().__init__()
        self.local = local
        self.parallel = parallel
        self.start, self.stop, _ = parallel.vocab_shard(vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int64 of the whole vocabulary -> [..., H], the same on all ranks."""
        foreign = (ids < self.start) | (ids >= self.stop)
        rows: Tensor = self.local((ids - self.start).masked_fill(foreign, 0))
        return self.parallel.all_reduce(rows.masked_fill(foreign[..., None], 0))


class Summed(nn.Module):
    """Sums the output of a module over ranks, where each has a partial sum (experts of a mixture, sharded inside)."""

    def __init__(self, inner: nn.Module, parallel: TPGroup) -> None:
        super().__init__()
        self.inner = inner
        self.parallel = parallel

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The inner module's output, summed over ranks."""
        return self.parallel.all_reduce(self.inner(*args, **kwargs))
