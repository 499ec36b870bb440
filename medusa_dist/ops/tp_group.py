"""TPGroup: this process's rank in the tensor-parallel group, and the collectives.

Owns the group and how sizes are divided over ranks. Not here: sharded layers (linear.py), which layer is sharded how
(model/sharding_plans.py), reading the weights (model/source/checkpoint.py).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from medusa_dist.errors import ConfigError


@dataclass
class CollectiveClock:
    """Wall time of this rank in collectives, as the host sees it. The rank with least of it is the one that the others
    wait for. On a GPU it is the time to launch them alone."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


@dataclass(frozen=True)
class TPGroup:
    """Rank and size of the tensor-parallel group. `group` carries the data collectives; None means world_size == 1."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    clock: CollectiveClock = field(default_factory=CollectiveClock, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is outside a tensor-parallel group of {self.world_size}")

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum x over all ranks, in place where it is contiguous; every rank gets the same bits."""
        if self.world_size == 1:
            return x
        x = x.contiguous()
        with self.clock.running():
            dist.all_reduce(x, group=self.group)
        return x

    def gather_to_rank0(self, x: Tensor) -> list[Tensor] | None:
        """All ranks' x (equal shapes) in rank order on rank 0; None on the others."""
        if self.world_size == 1:
            return [x]
        parts = [torch.empty_like(x) for _ in range(self.world_size)] if self.rank == 0 else None
        with self.clock.running():
            dist.gather(x.contiguous(), parts, group=self.group, group_dst=0)
        return parts

    def all_reduce_min(self, value: int) -> int:
        """The minimum of all ranks' values, on every rank."""
        if self.world_size == 1:
            return value
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        least = torch.tensor([value], dtype=torch.int64, device=device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self.group)
        return int(least.item())

    def shard_range(self, size: int) -> tuple[int, int]:
        """This rank's [start, stop) of `size` items, divided as evenly as possible; the first ranks hold one more."""
        small, extra = divmod(size, self.world_size)
        start = self.rank * small + min(self.rank, extra)
        return start, start + small + (self.rank < extra)

    def vocab_shard(self, vocab_size: int) -> tuple[int, int, int]:
        """This rank's vocabulary ids [start, stop), and every rank's padded row count, ceil(V / world_size)."""
        rows = -(-vocab_size // self.world_size)
        start = min(self.rank * rows, vocab_size)
        return start, min(start + rows, vocab_size), rows
