"""A rank group that a plain program owns: several ranks for `LLM` or for a job, without HTTP.

Owns Ray, where it is not running yet, and the placement group. Not here: the group itself (group.py). A group that
falls is not restarted here: the program gets the error.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import remove_placement_group

from medusa_dist.config import Config
from medusa_dist.engine.messages import Command, EngineMessage, OutputBatch
from medusa_dist.errors import GroupError
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.local_ray import start_local_ray
from medusa_dist.serve.placement import reserve, resolve_device
from medusa_dist.serve.rank import STACK


def hold_group(config: Config, stack: str, holds: ExitStack) -> TPWorkerGroup:
    """All ranks up. `holds` gets what ends them, and whatever was started for them, also if the start fails.

    Uses the Ray that the program has initialised, else starts one on this machine. Raises GroupError, ConfigError or
    ModelError.
    """
    if not ray.is_initialized():
        needed = config.resources.cpus_per_rank * config.tensor_parallel_size
        start_local_ray(max(os.cpu_count() or 1, math.ceil(needed)))
        holds.callback(ray.shutdown)
    config = resolve_device(config)
    placement = reserve(config)
    holds.callback(remove_placement_group, placement)
    group = TPWorkerGroup(config, placement, 0, stack)
    holds.callback(group.stop)
    group.start()
    return group


def run_ranks(config: Config, stack: str, report: Callable[[str], None]) -> None:
    """RankGroup that do one job together and end. stack: a module whose ranks have no engine. report: told rank 0's
    phase.

    Raises the error that a rank raised, or GroupError if one is lost; nothing is left behind.
    """
    with ExitStack() as holds:
        hold_group(config, stack, holds).await_end(report)


class LocalGroup:
    """All ranks up and decoding. facts: of rank 0. Raises as hold_group does, with nothing left behind."""

    def __init__(self, config: Config, stack: str = STACK) -> None:
        self._error: GroupError | None = None  # why it fell
        with ExitStack() as holds:
            self._group = hold_group(config, stack, holds)
            self.facts: dict[str, Any] = self._group.facts[0]
            self._stream = self._group.batches()
            self._holds = holds.pop_all()

    def send(self, commands: Sequence[Command]) -> None:
        """Hand over submits and aborts, in order. Raises GroupError once the group fell."""
        if self._error is not None:
            raise self._error
        try:
            ray.get(self._group.post(commands))
        except RayError:
            self._error = self._group.cause()
            raise self._error from None

    def receive(self) -> tuple[EngineMessage, ...]:
        """What the engine put out since the last call; empty about once a second when idle. Raises GroupError."""
        if self._error is not None:
            raise self._error
        try:
            batch: OutputBatch = ray.get(next(self._stream))
        except (RayError, StopIteration):
            self._error = self._group.cause()
            raise self._error from None
        return batch.messages

    def close(self) -> None:
        """End the ranks, and Ray if it was started here. Idempotent."""
        self._holds.close()
