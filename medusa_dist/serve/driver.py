"""A rank group that a plain program owns: several ranks for `LLM`, without HTTP.

Owns Ray, where it is not running yet, and the placement group. Not here: the group itself (group.py). A group that
falls is not restarted here: the program gets the error.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import remove_placement_group

from medusa_dist.config import Config
from medusa_dist.engine.loop import Batch, Command
from medusa_dist.engine.outbox import Message
from medusa_dist.errors import GroupError
from medusa_dist.serve.group import Group
from medusa_dist.serve.local_ray import start_local_ray
from medusa_dist.serve.placement import reserve, resolve_device
from medusa_dist.serve.rank import STACK


class DriverGroup:
    """All ranks up and decoding. facts: of rank 0.

    Uses the Ray that the program has initialised, else starts one on this machine and ends it again. Raises GroupError,
    ConfigError or ModelError with nothing left behind.
    """

    def __init__(self, config: Config, stack: str = STACK) -> None:
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            needed = config.resources.cpus_per_rank * config.tensor_parallel_size
            cores = max(os.cpu_count() or 1, math.ceil(needed))
            start_local_ray(cores)
        self._group: Group | None = None
        self._error: GroupError | None = None  # why it fell
        self._placement = None
        try:
            config = resolve_device(config)
            self._placement = reserve(config)
            self._group = Group(config, self._placement, 0, stack)
            self._group.start()
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, Any] = self._group.facts[0]
        self._stream = self._group.batches()

    def send(self, commands: Sequence[Command]) -> None:
        """Hand over submits and aborts, in order. Raises GroupError once the group fell."""
        assert self._group is not None
        if self._error is not None:
            raise self._error
        try:
            ray.get(self._group.post(commands))
        except RayError:
            self._error = self._group.cause()
            raise self._error from None

    def receive(self) -> tuple[Message, ...]:
        """What the engine put out since the last call; empty about once a second when idle. Raises GroupError."""
        assert self._group is not None
        if self._error is not None:
            raise self._error
        try:
            batch: Batch = ray.get(next(self._stream))
        except (RayError, StopIteration):
            self._error = self._group.cause()
            raise self._error from None
        return batch.messages

    def close(self) -> None:
        """End the ranks, and Ray if it was started here. Idempotent."""
        if self._group is not None:
            self._group.stop()
            self._group = None
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()
