"""LocalGroup: several ranks for `LLM` or for a job, without HTTP.

Owns the placement group, and Ray if it is not running yet. Not here: the group itself (group.py). A failed group is
not restarted: the program gets the error.
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
from medusa_dist.serve.placement import reserve, resolve_device
from medusa_dist.serve.rank import STACK
from medusa_dist.serve.ray_cluster import start_local_ray


def hold_group(config: Config, stack: str, holds: ExitStack) -> TPWorkerGroup:
    """Start all ranks. `holds` gets the callbacks that stop them and what was started for them, even on failure.

    Uses the Ray instance that the program has initialised, otherwise starts one on this machine. Raises GroupError,
    ConfigError or ModelError.
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
    """Run ranks that do one job together and then end. stack: a module whose ranks have no engine.

    report: called with rank 0's phase.

    Raises the error that a rank raised, or GroupError if one is lost. Leaves no process.
    """
    with ExitStack() as holds:
        hold_group(config, stack, holds).await_end(report)


class LocalGroup:
    """A running group. facts: of rank 0. The constructor raises as hold_group does, and leaves no process."""

    def __init__(self, config: Config, stack: str = STACK) -> None:
        self._error: GroupError | None = None  # why it failed
        with ExitStack() as holds:
            self._group = hold_group(config, stack, holds)
            self.facts: dict[str, Any] = self._group.facts[0]
            self._stream = self._group.batches()
            self._holds = holds.pop_all()

    def send(self, commands: Sequence[Command]) -> None:
        """Send submits and aborts, in order. Raises GroupError once the group has failed."""
        if self._error is not None:
            raise self._error
        try:
            ray.get(self._group.post(commands))
        except RayError:
            self._error = self._group.cause()
            raise self._error from None

    def receive(self) -> tuple[EngineMessage, ...]:
        """The engine's messages since the last call; empty about once a second when idle. Raises GroupError."""
        if self._error is not None:
            raise self._error
        try:
            batch: OutputBatch = ray.get(next(self._stream))
        except (RayError, StopIteration):
            self._error = self._group.cause()
            raise self._error from None
        return batch.messages

    def close(self) -> None:
        """Stop the ranks, and Ray if it was started here. Idempotent."""
        self._holds.close()
