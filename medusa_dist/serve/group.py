"""TPWorkerGroup: the rank actors of one generation, which start and stop together.

Owns the start with deadlines, the version check, the cause of a failure, and the end without leftover processes. Not
here: restarts (supervisor.py), one rank (rank.py), bundles (placement.py). Used by a replica (which awaits the refs)
and by a plain program (which gets them).
"""

import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medusa_dist.config import Config
from medusa_dist.engine.messages import Command
from medusa_dist.errors import GroupError, MedusaError
from medusa_dist.serve.placement import rank_resources
from medusa_dist.serve.rank import STACK, RankActor, RankInfo

STREAM_AHEAD = 8  # batches that Ray buffers for a slow reader; beyond this, the outbox merges them
END_S = 15.0  # deadline for a killed process to be gone


class TPWorkerGroup:
    """Ranks 0 to tensor_parallel_size - 1 in the bundles of a placement group.

    The config's device must be resolved. The caller keeps ownership of the placement group.
    """

    def __init__(
        self, config: Config, placement_group: PlacementGroup, generation: int = 0, stack: str = STACK
    ) -> None:
        self._config = config
        self._placement_group = placement_group
        self._generation = generation
        self._stack = stack
        self._ranks: list[Any] = []
        self._places: list[RankInfo] = []
        self._starts: list[Any] = []
        self._is_ended = False
        self.lives: list[Any] = []  # one ref per rank; when the first is ready, the group has ended
        self.facts: list[dict[str, Any]] = []  # by rank; what each rank reported after its start
        self.seconds: dict[str, float] = {}  # how long each phase of the start took

    @property
    def pids(self) -> list[int]:
        """Process ids of the placed ranks."""
        return [place.pid for place in self._places]

    def start(self, limit_s: float | None = None) -> None:
        """Place, load and warm up all ranks, then run them. Blocks; limit_s lowers timeouts.load_s.

        Raises GroupError naming ranks and phase when a deadline passes or a rank dies, or the error that a rank itself
        raised (ConfigError, ModelError). The caller must then call kill.
        """
        timeouts = self._config.timeouts
        load_s = timeouts.load_s if limit_s is None else min(limit_s, timeouts.load_s)
        began = time.monotonic()
        self._create()
        self._places = self._gather("be placed", [r.place.remote() for r in self._ranks], timeouts.placement_s)
        placed = time.monotonic()
        self._compare_versions()
        host, port = self._address(), 0
        if len(self._ranks) > 1:
            opened = [self._ranks[0].open_store.remote(host)]
            port = self._gather("open the rendezvous", opened, timeouts.placement_s)[0]
        self._starts = [rank.start.remote(host, port) for rank in self._ranks]
        self.facts = self._gather("load and warm up", self._starts, load_s)
        self.seconds = {"place": placed - began, **self.facts[0]["seconds"], "all": time.monotonic() - began}
        self.lives = [rank.run.remote() for rank in self._ranks]

    def _create(self) -> None:
        resources = rank_resources(self._config)
        suffix = f"{uuid.uuid4().hex[:6]}-{self._generation}"
        for rank in range(self._config.tensor_parallel_size):
            actor = RankActor.options(
                name=f"medusa:{self._config.name}:rank{rank}:{suffix}",
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0.0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._placement_group, placement_group_bundle_index=rank
                ),
            )
            made = actor.remote(self._config, rank, self._generation, self._stack)
            self._ranks.append(made)
            if self._is_ended:  # killed by another thread, which may have missed this rank
                ray.kill(made, no_restart=True)
                raise GroupError("the group was stopped while it was starting")

    def _address(self) -> str:
        """The address of rank 0 for the other ranks: loopback if the group is on one node."""
        one_node = len({place.node_id for place in self._places}) == 1
        return "127.0.0.1" if one_node else self._places[0].address

    def _gather(self, what: str, refs: list[Any], timeout_s: float) -> list[Any]:
        """All results in order. Raises on the first failure or at the deadline."""
        deadline = time.monotonic() + timeout_s
        results: dict[int, Any] = {}
        while len(results) < len(refs):
            waiting = {refs[i]: i for i in range(len(refs)) if i not in results}
            done, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                names = ", ".join(map(str, sorted(waiting.values())))
                raise GroupError(f"rank {names} did not {what} within {timeout_s:g} s{self._phases()}")
            rank = waiting[done[0]]
            try:
                results[rank] = ray.get(done[0])
            except RayError as error:
                raise self._explain(rank, what, error) from None
        return [results[i] for i in range(len(refs))]

    def _phases(self) -> str:
        """The current phase of each rank that still responds, as the end of a message."""
        asked = [rank.phase.remote() for rank in self._ranks]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=1.0)
        known = []
        for number, ref in enumerate(asked):
            try:
                known.append(f"rank {number}: {ray.get(ref)}" if ref in done else f"rank {number}: no response")
            except RayError as error:
                known.append(f"rank {number}: {_brief(error)}")
        return f" ({'; '.join(known)})"

    def _explain(self, rank: int, what: str, error: RayError) -> MedusaError:
        """The exception for a rank's failure: the rank's own typed error if there is one."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, MedusaError):
            return error.cause
        return GroupError(f"rank {rank} could not {what}: {_brief(error)}")

    def _compare_versions(self) -> None:
        first = self._places[0]
        for rank, place in enumerate(self._places):
            for name, version in place.versions.items():
                if version != first.versions[name]:
                    raise GroupError(
                        f"{name} is {version} for rank {rank} on {place.hostname}, but {first.versions[name]} for rank "
                        f"0 on {first.hostname}; install the same packages on all nodes"
                    )

    def post(self, commands: Sequence[Command]) -> Any:
        """Send commands to the engine; returns a ref. Await each post before the next, to keep the order."""
        return self._ranks[0].post.remote(list(commands))

    def batches(self) -> Any:
        """The output stream: iterate (or async iterate) over refs of OutputBatch. Call once."""
        method = self._ranks[0].batches
        return method.options(num_returns="streaming", _generator_backpressure_num_objects=STREAM_AHEAD).remote()

    def await_end(self, report: Callable[[str], None]) -> None:
        """Wait until all ranks have finished and returned, as ranks without an engine do.

        report: called with rank 0's phase about once a second. Raises the error that a rank itself raised, or
        GroupError if a rank died or failed.
        """
        waiting = list(self.lives)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
            for ref in done:
                try:
                    ray.get(ref)
                except RayError as error:
                    own = self._explain(self.lives.index(ref), "do its work", error)
                    raise self.cause() if isinstance(own, GroupError) else own from None
            try:
                report(ray.get(self._ranks[0].phase.remote()))
            except RayError:
                continue  # the rank is gone, and its `lives` ref has the reason

    def cause(self, settle_s: float = 1.0) -> GroupError:
        """Why the group failed. Waits settle_s for the other ranks' errors: a dead rank is the most likely cause."""
        ray.wait(self.lives, num_returns=len(self.lives), timeout=settle_s)
        done, _ = ray.wait(self.lives, num_returns=len(self.lives), timeout=0.0)
        died, failed = [], []
        for rank, ref in enumerate(self.lives):
            if ref not in done:
                continue
            try:
                ray.get(ref)
                failed.append(f"rank {rank} stopped")
            except RayActorError as error:
                died.append(f"rank {rank}: {_brief(error)}")
            except RayError as error:
                failed.append(f"rank {rank} failed: {_brief(error)}")
        return GroupError("; ".join(died or failed) or "the group did not respond")

    def stop(self) -> None:
        """Stop the group, idle or busy, then kill what is left of it."""
        if self.lives:
            self._ranks[0].close.remote()
            ray.wait(self.lives, num_returns=len(self.lives), timeout=2.0)
        self.kill()

    def kill(self) -> None:
        """Kill all ranks and wait until their processes are gone. Raises GroupError if one still exists after END_S.

        May be called while another thread is in `start`; no rank is left in this case either.
        """
        self._is_ended = True
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)
        here = ray.get_runtime_context().get_node_id()
        pids = {place.pid for place in self._places if place.node_id == here}
        start = time.monotonic()
        while pids := {pid for pid in pids if _exists(pid)}:
            waited_s = time.monotonic() - start
            if waited_s > END_S:
                raise GroupError(f"processes {sorted(pids)} still exist {END_S:g} s after they were killed")
            if waited_s > 1.0:  # a stopped (SIGSTOP) process cannot react to Ray
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._hear_out()
        self._ranks, self._places, self._starts, self.lives = [], [], [], []

    def _hear_out(self) -> None:
        """Wait for the end of all calls (on other nodes this shows that the process is gone)."""
        for ref in self._starts + self.lives:
            try:
                ray.get(ref, timeout=END_S)
            except RayError:
                continue  # expected after the kill; Ray prints unread refs as unhandled errors


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _brief(error: RayError) -> str:
    """The line with the cause, without Ray's traceback, terminal colours and general advice."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).strip()
    if isinstance(error, RayActorError) and (exit_detail := re.search(r"exit detail: (.*?)(?: Some common|$)", text)):
        pid = re.search(r"pid: (\d+)", text)
        return f"process {pid.group(1) if pid else '?'} died: {exit_detail.group(1)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"[:400]
