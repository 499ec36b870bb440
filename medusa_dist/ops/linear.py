"""Sharded layers: column- and row-parallel linear layers, the vocabulary's embedding, and the CPU's prepacked weights.

Owns what a rank computes in a cut layer. Not here: collectives (tp_group.py), which layer is cut how
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
    """A weight [O, I] in oneDNN's own blocked layout, and the linear that uses it. CPU, float32 or bfloat16.

    Faster than `F.linear` for few rows (MKL's skinny matrix product is slow), and in float32 a row's result does not
    depend on how many other rows are computed with it. The operators are private to PyTorch: `pack` may refuse.
    """

    def __init__(self, packed: Tensor) -> None:
        self.packed = packed

    @staticmethod
    def pack(weight: Tensor) -> "PackedWeight | None":
        """The packed copy, or None where this build, device or dtype cannot; the reason is logged once."""
        refusal = packing_refusal(weight.device, weight.dtype)
        if refusal is not None:
            if weight.device.type == "cpu":
                _log_refusal(refusal)
            return None
        return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_PACKED_FOR))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., I] -> [..., O]; the bias is added inside."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return y


_ROWS_PACKED_FOR = 8  # a hint for the blocking only; results do not depend on it


@functools.cache
def packing_refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why weights of this kind cannot be prepacked; None = they can. Tries it once against F.linear."""
    if device.type != "cpu":
        return f"{device.type} has no use for it"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"{dtype} is not supported"
    x, weight = torch.linspace(-1, 1, 64).view(2, 32).to(dtype), torch.linspace(-1, 1, 480).view(15, 32).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_PACKED_FOR)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        return str(error).splitlines()[0]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return None if torch.allclose(y, F.linear(x, weight), atol=tolerance, rtol=tolerance) else "it computes wrongly"


@functools.cache
def _log_refusal(reason: str) -> None:
    logger.warning("linear layers are not prepacked, which is slower on a CPU: %s", reason)


class Linear(nn.Module):
    """y = x W^T + b with this rank's rows of W: a column-parallel layer, or a whole one.

    With `prepack` the plain weight is dropped and `weight` is None, where the CPU can; else F.linear runs.
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
        """True if the weight lives in oneDNN's layout."""
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
    """y = sum over ranks of x_r W_r^T, + b: this rank's columns of W on this rank's part of x. The bias is added once,
    after the sum, so every rank ends with the same bits."""

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
    """Embedding lookup over ranks: each looks up its own ids, the others' rows are zero, and the sum is exact.

    `local` is the model's own embedding module, holding this rank's rows; what it does besides (scaling) stays.
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
    """A module whose output is a partial sum on each rank (a mixture's experts, cut inside): adds them up."""

    def __init__(self, inner: nn.Module, parallel: TPGroup) -> None:
        super().__init__()
        self.inner = inner
        self.parallel = parallel

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """As the inner module, summed over ranks."""
        return self.parallel.all_reduce(self.inner(*args, **kwargs))
