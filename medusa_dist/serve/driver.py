"""A rank group owned by a plain driver process: what `LLM` uses for tensor_parallel_size > 1.

Owns the placement group, and Ray itself where none was running. Not here: the group (group.py), a replica's front
(front.py), restarts: a fall is an error for the caller.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import remove_placement_group

from medusa_dist.config import Config
from medusa_dist.engine.loop import Batch, Command
from medusa_dist.engine.outbox import Message
from medusa_dist.serve.group import Group
from medusa_dist.serve.placement import reserve, resolve_device


class DriverGroup:
    """Starts everything at birth and ends it with `close`. Raises GroupError, ConfigError or ModelError."""

    def __init__(self, config: Config) -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            wanted = math.ceil(config.tensor_parallel_size * config.resources.cpus_per_rank)
            # CPUs are tickets, not cores: more ranks than cores is slow, and right for trying things out.
            ray.init(num_cpus=max(wanted, os.cpu_count() or 1), include_dashboard=False)
        config = resolve_device(config)
        self._placement_group = reserve(config)
        self._group = Group(config, self._placement_group)
        try:
            self._group.start()
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, Any] = self._group.facts[0]
        self._batches = iter(self._group.batches())

    def send(self, commands: Sequence[Command]) -> None:
        """Hand over submits and aborts, in order."""
        ray.get(self._group.post(commands))

    def receive(self) -> tuple[Message, ...]:
        """The messages of the next batch; blocks. Raises GroupError if the group fell."""
        try:
            batch: Batch = ray.get(next(self._batches))
        except (RayError, StopIteration):
            raise self._group.cause() from None
        return batch.messages

    def close(self) -> None:
        """End ranks, placement group, and Ray if it was started here. Idempotent."""
        self._group.stop()
        if ray.is_initialized():
            remove_placement_group(self._placement_group)
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False
