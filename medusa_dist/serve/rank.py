"""RankActor: one rank as a Ray actor, with its process, threads and node.

Owns the Ray side of a rank. Not here: the engine (the rank module `stack`), the lifetime of all ranks (group.py).
This module does not import torch: the replica imports it too, and a rank's thread count must be in the environment
before torch is loaded.
Threads: "engine" starts and runs the engine, always on the same thread; "control" responds while the engine is busy;
"stream" carries the outputs.
"""

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import ray
from ray._common.filters import CoreContextFilter
from ray._common.formatters import JSONFormatter
from ray.util.metrics import Counter

from medusa_dist.config import Config
from medusa_dist.engine.loop import EngineLoop, SteppingEngine
from medusa_dist.engine.messages import Command, OutputBatch
from medusa_dist.errors import GroupError

STACK = "medusa_dist.engine.startup.bootstrap"
REPORT_S = 2.0  # between two reports of a rank's metrics
PACKAGES = ("medusa-dist", "ray", "torch", "transformers", "safetensors", "numpy")


class RankProcess(Protocol):
    """What a rank module builds for one rank."""

    engine: SteppingEngine | None  # only rank 0 has one, or no rank
    facts: dict[str, Any]

    @property
    def collective_seconds(self) -> float:
        """Wall time of this rank in collectives since its start."""

    def follow(self) -> None:
        """Ranks without an engine: execute plans until rank 0 stops, or do the group's job.

        Raises if another rank is lost.
        """


class RankFactory(Protocol):
    """A module that builds ranks: medusa_dist.engine.startup.bootstrap, or a fake in the tests."""

    build_rank: Callable[..., RankProcess]

    def model_folder(self, config: Config) -> Path:
        """The model's folder on this node; downloads it if missing."""

    def open_store(self, world: int, host: str, timeout_s: float) -> Any:
        """Rank 0: create a rendezvous store on a free port, its attribute `port`."""

    def join_store(self, host: str, port: int, world: int, timeout_s: float) -> Any:
        """Ranks above 0: connect to rank 0's store."""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Where a rank runs. address: of its node, for other nodes. versions: of PACKAGES and Python on the node."""

    pid: int
    node_id: str
    hostname: str
    address: str
    visible_gpus: str | None
    versions: dict[str, str]


class Rank:
    """The class behind RankActor. Call order: place, (open_store), start, run; on rank 0 also batches and post."""

    def __init__(self, config: Config, rank: int, generation: int, stack: str) -> None:
        self._config = config
        self._rank = rank
        self._generation = generation
        self._phase = "start"
        self._store: Any = None
        self._built: RankProcess | None = None
        self._loop: EngineLoop | None = None
        if config.log_format == "json":
            _log_as_json({"model": config.name, "rank": rank, "generation": generation})
        threads = config.resources.threads_per_rank or _share_of_cores(config.tensor_parallel_size)
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        self._stack: RankFactory = import_module(stack)

    def __repr__(self) -> str:
        return f"medusa-rank{self._rank}"  # Ray prefixes each line that the process prints with this

    @ray.method(concurrency_group="control")
    def place(self) -> RankInfo:
        """Where this rank runs. Raises GroupError if it needs a GPU and Ray did not assign exactly one."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        place = RankInfo(
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            hostname=socket.gethostname(),
            address=ray.util.get_node_ip_address(),
            visible_gpus=visible,
            versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        )
        if self._config.device == "cuda" and (visible is None or len(visible.split(",")) != 1 or not visible):
            raise GroupError(
                f"rank {self._rank} on {place.hostname} must see exactly one GPU; CUDA_VISIBLE_DEVICES={visible!r}"
            )
        return place

    @ray.method(concurrency_group="control")
    def phase(self) -> str:
        """The current phase of `start`, or "ready"."""
        return self._phase

    @ray.method(concurrency_group="engine")
    def open_store(self, host: str) -> int:
        """Rank 0: open the rendezvous store on a free port, keep it open, and return the port."""
        timeouts = self._config.timeouts
        self._store = self._stack.open_store(self._config.tensor_parallel_size, host, timeouts.placement_s)
        return int(self._store.port)

    @ray.method(concurrency_group="engine")
    def start(self, host: str, port: int) -> dict[str, Any]:
        """Join the other ranks, load and warm up. Blocks. Returns the rank's facts.

        Port 0: this is the only rank.
        """
        config = self._config
        if port and self._rank > 0:
            self._store = self._stack.join_store(host, port, config.tensor_parallel_size, config.timeouts.placement_s)
        self._note("find the model")
        folder = self._stack.model_folder(config)
        self._built = self._stack.build_rank(config, folder, self._rank, self._store, self._generation, self._note)
        if self._built.engine is not None:
            timeouts = config.timeouts
            self._loop = EngineLoop(self._built.engine, timeouts.heartbeat_s, timeouts.stall_s, self._generation)
        self._note("ready")
        return self._built.facts | {"folder": str(folder)}

    def _note(self, phase: str) -> None:
        self._phase = phase

    @ray.method(concurrency_group="engine")
    def run(self) -> None:
        """Decode until `close`. When it returns or raises, the group has ended."""
        assert self._built is not None
        if self._config.tensor_parallel_size > 1:
            Thread(target=_report, args=(self._config, self._rank, self._built), daemon=True).start()
        if self._loop is not None:
            self._loop.run()
        else:
            self._built.follow()

    @ray.method(concurrency_group="control")
    def post(self, commands: Sequence[Command]) -> None:
        """Rank 0: send commands to the engine, in order."""
        assert self._loop is not None
        self._loop.post(commands)

    @ray.method(concurrency_group="control")
    def close(self) -> None:
        """Rank 0: end `run` on all ranks. Without an engine, `run` ends by itself when the job is done."""
        if self._loop is not None:
            self._loop.close()

    @ray.method(concurrency_group="stream")
    def batches(self) -> Iterator[OutputBatch]:
        """Rank 0: the output stream."""
        assert self._loop is not None
        yield from self._loop.batches()


RankActor: Any = ray.remote(concurrency_groups={"engine": 1, "control": 2, "stream": 1})(Rank)


def _log_as_json(fields: Mapping[str, object]) -> None:
    """The package's log of this process as JSON on standard error, which Ray keeps in a file of each process.

    The keys are those of a replica's log, of Ray's own formatter. fields: of every line.
    """

    def add(record: logging.LogRecord) -> bool:
        vars(record).update(fields)
        return True

    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    handler.addFilter(CoreContextFilter())
    handler.addFilter(add)
    package = logging.getLogger("medusa_dist")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)


def _report(config: Config, rank: int, process: RankProcess) -> None:
    """Export the rank's time in collectives while the process lives; from here, since only the rank knows it."""
    name, text = "medusa_dist_rank_collective_seconds_total", "Wall time of a rank in collectives, waiting included."
    counter = Counter(name, description=text, tag_keys=("model", "rank"))
    reported = process.collective_seconds
    while True:
        time.sleep(REPORT_S)
        seconds = process.collective_seconds
        if seconds > reported:
            counter.inc(seconds - reported, tags={"model": config.name, "rank": str(rank)})
        reported = seconds


def _share_of_cores(world: int) -> int:
    """CPU threads of a rank: this node's cores, less one, divided by the ranks.

    The spare core is for the replica, Ray and other processes: tensor threads wait for each other some 400 times a
    step,
    and with one thread more than free cores each wait costs a time slice (measured: 50 ms per step became 1,400 ms).
    Cores: the smaller of what Ray counts (it knows cgroups) and os.cpu_count.
    """
    node_id = ray.get_runtime_context().get_node_id()
    counted = [node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == node_id]
    cores = int(min([*counted, float(os.cpu_count() or 1)]))
    return max(1, (cores - 1) // world)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # running from a source tree
