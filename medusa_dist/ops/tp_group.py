"""Tensor parallelism: who this process is, the collectives, and every sharded layer.

Owns the local layers a model is built of on one rank, and the CPU's prepacked linear. Not here: which layer of which
architecture is cut how (model/sharding_plans.py), reading the weights (model/source/checkpoint.py).
Shapes: T rows, I input features, O output features (of this rank), V vocabulary, H hidden size.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from medusa_dist.errors import ConfigError


@dataclass(frozen=True)
class TPGroup:
    """Who I am in the tensor-parallel group. `group` carries the data collectives; None means world == 1."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is outside a tensor-parallel group of {self.world_size}")

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum x over all ranks, in place where it is contiguous; every rank gets the same bits."""
        if self.world_size == 1:
            return x
        x = x.contiguous()
        dist.all_reduce(x, group=self.group)
        return x

    def gather_to_rank0(self, x: Tensor) -> list[Tensor] | None:
        """All ranks' x (equal shapes) in rank order on rank 0; None on the others."""
        if self.world_size == 1:
            return [x]
        parts = [torch.empty_like(x) for _ in range(self.world_size)] if self.rank == 0 else None
        dist.gather(x.contiguous(), parts, group=self.group, group_dst=0)
        return parts

    def all_reduce_min(self, value: int) -> int:
        """The least of all ranks' values, on every rank."""
        if self.world_size == 1:
            return value
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        least = torch.tensor([value], dtype=torch.int64, device=device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self.group)
        return int(least.item())

    def shard_range(self, size: int) -> tuple[int, int]:
        """My [start, stop) of `size` items dealt as evenly as possible; the first ranks hold one more."""
        small, extra = divmod(size, self.world_size)
        start = self.rank * small + min(self.rank, extra)
        return start, start + small + (self.rank < extra)

    def vocab_shard(self, vocab_size: int) -> tuple[int, int, int]:
        """My vocabulary ids [start, stop) and the equal row count of all ranks, ceil(V / world), padding included."""
        rows = -(-vocab_size // self.world_size)
        start = min(self.rank * rows, vocab_size)
        return start, min(start + rows, vocab_size), rows
