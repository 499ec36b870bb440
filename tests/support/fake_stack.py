"""Stand-in for medusa_dist.engine.startup.bootstrap: deterministic tokens, no torch, sockets between ranks, failures on
demand.

Token i of a request depends on its prompt and i alone. prompt_ids = (pace in ms per step, poison, ...): a poison of
p > 0 makes the engine raise when it is to make token p. The model's name chooses how the start fails.
A file hold-<n> in the model's folder holds the requests whose prompt ends with n: each stops halfway, until the file is
gone. Who stopped there tells so by a file held-<n>-<pid>.
"""

import os
import socket
import time
from pathlib import Path

from medusa_dist.config import Config
from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.samples import StepSample
from medusa_dist.errors import ModelError, RequestError
from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request


def token(prompt_ids: tuple[int, ...], index: int) -> int:
    return (sum(prompt_ids) * 31 + index * 7) % 997


def expected(prompt_ids: tuple[int, ...], count: int) -> list[int]:
    return [token(prompt_ids, i) for i in range(count)]


class Store:
    """One socket per follower."""

    def __init__(self, listener: socket.socket | None = None, link: socket.socket | None = None):
        self.listener = listener
        self.links = [link] if link else []
        self.port = listener.getsockname()[1] if listener else 0


def open_store(world: int, host: str, timeout_s: float) -> Store:
    listener = socket.create_server((host, 0))
    listener.settimeout(timeout_s)
    return Store(listener=listener)


def join_store(host: str, port: int, world: int, timeout_s: float) -> Store:
    return Store(link=socket.create_connection((host, port), timeout_s))


def model_folder(config: Config) -> Path:
    """fake:mode:folder"""
    model = config.model
    if model == "fake:missing":
        raise ModelError("model: 'fake:missing' is not there; name one that is")
    return Path(model.split(":")[2] if model.count(":") > 1 else "/nowhere")


class Gate:
    """The test's side of the hold files in a folder. All are let go at its end."""

    def __init__(self, folder: str):
        self._folder = Path(folder)

    def __enter__(self) -> "Gate":
        for path in self._folder.glob("held-*"):  # of the test before
            path.unlink()
        return self

    def __exit__(self, *exc) -> None:
        for path in self._folder.glob("hold-*"):
            path.unlink()

    def hold(self, number: int) -> None:
        (self._folder / f"hold-{number}").touch()

    def release(self, number: int) -> None:
        (self._folder / f"hold-{number}").unlink()

    def holder(self, number: int) -> int | None:
        """The pid of the rank that got halfway with the request; None before."""
        found = list(self._folder.glob(f"held-{number}-*"))
        assert len(found) < 2, found
        return int(found[0].name.rsplit("-", 1)[1]) if found else None


class FakeEngine:
    def __init__(self, links: list[socket.socket], folder: Path = Path("/nowhere")):
        self._links = links
        self._folder = folder
        self._running: dict[str, tuple[Request, int]] = {}

    def submit(self, request: Request, output_ids: tuple[int, ...] = ()) -> None:
        if len(request.prompt_ids) < 2:
            raise RequestError("the prompt is too short", "prompt")
        assert list(output_ids) == expected(request.prompt_ids, len(output_ids)), "a token was lost or doubled"
        self._running[request.request_id] = (request, len(output_ids))

    def abort(self, request_id: str) -> None:
        self._running.pop(request_id, None)

    def _beat(self) -> None:
        for link in self._links:
            link.sendall(b"s")
        for link in self._links:
            if link.recv(1) != b"a":
                raise ConnectionError("connection closed by peer")

    def step(self) -> list[Output]:
        self._beat()
        time.sleep(max(r.prompt_ids[0] for r, _ in self._running.values()) / 1000)
        return [self._next(name) for name in list(self._running) if not self._is_held(name)]

    def _is_held(self, name: str) -> bool:
        request, index = self._running[name]
        number = request.prompt_ids[-1]
        if index != (request.params.max_tokens or 0) // 2 or not (self._folder / f"hold-{number}").exists():
            return False
        (self._folder / f"held-{number}-{os.getpid()}").touch()
        return True

    def _next(self, name: str) -> Output:
        request, index = self._running[name]
        if 0 < request.prompt_ids[1] == index:
            raise RuntimeError("poison")
        last = index + 1 == (request.params.max_tokens or 10**9)
        self._running[name] = (request, index + 1)
        if last:
            del self._running[name]
        return Output(
            request_id=name,
            token_ids=(token(request.prompt_ids, index),),
            heads=(0,),
            finish_reason=FinishReason.LENGTH if last else None,
            stats=SpeculationStats(num_steps=1),
        )

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def heartbeat(self) -> None:
        self._beat()

    def stop(self) -> None:
        for link in self._links:
            link.sendall(b"q")

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._running))

    def take_samples(self) -> list[StepSample]:
        return []


class EngineRank:
    def __init__(self, config, folder, rank, store, generation, progress):
        progress("load")
        if config.model == "fake:dies":
            os._exit(3)
        if config.model == "fake:hangs":
            time.sleep(600)
        self._links = store.links if store else []
        world = config.tensor_parallel_size
        if rank == 0 and world > 1:
            self._links = [store.listener.accept()[0] for _ in range(world - 1)]
        for link in self._links:
            link.settimeout(config.timeouts.step_s)
        progress("warm up")
        self.engine = FakeEngine(self._links, folder) if rank == 0 else None
        self.facts = {
            "dtype": "float32",
            "vocab_size": 997,
            "max_model_len": 10_000,
            "speculation": "off",
            "seconds": {"load": 0.0},
        }

    collective_seconds = 0.0

    def follow(self) -> None:
        (link,) = self._links
        while (word := link.recv(1)) == b"s":
            link.sendall(b"a")
        if word != b"q":
            raise ConnectionError("rank 0 closed the connection")


build_rank = EngineRank
