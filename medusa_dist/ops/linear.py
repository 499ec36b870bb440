"""Sharded layers: column- and row-parallel linear, vocabulary embedding.

Owns what a rank computes in a sharded layer. Not here: collectives (tp_group.py), which layer is sharded how
(model/sharding_plans.py), layouts of weights for CPUs (cpu/packed_weights.py).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.ops.cpu.packed_weights import PackedWeight, WeightForm
from medusa_dist.ops.tp_group import TPGroup


class Linear(nn.Module):
    """y = x W^T + b with this rank's rows of W: a column-parallel layer, or a replicated one.

    Once packed, in a form that the CPU multiplies faster, the plain weight is dropped and `weight` is None; otherwise
    F.linear runs.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, prepack: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed: WeightForm | None = None
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        if prepack:
            self.pack()

    @staticmethod
    def joined(layers: Sequence[nn.Module]) -> "Linear | None":
        """One layer whose outputs are those of the layers, one after the other; None if they do not go together."""
        plain = [each for each in layers if type(each) is Linear]
        weights = [each.weight for each in plain if each.weight is not None]
        biases = [each.bias for each in plain if each.bias is not None]
        if len(weights) != len(layers) or len(biases) not in (0, len(layers)):
            return None
        return Linear(torch.cat(weights), torch.cat(biases) if biases else None, prepack=False)

    def pack(self, form: Callable[[Tensor], WeightForm | None] = PackedWeight.pack) -> None:
        """Put the weight into that form, once, where it exists for this weight."""
        if self._packed is None and self.weight is not None and self.weight.numel():
            self._packed = form(self.weight)
            self.weight = None if self._packed is not None else self.weight

    @property
    def is_packed(self) -> bool:
        """Whether the weight is in a form for CPUs."""
        return self._packed is not None

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight; 0 if it is not packed."""
        return 0 if self._packed is None else self._packed.nbytes

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
