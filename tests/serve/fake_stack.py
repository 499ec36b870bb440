"""Stand-in for medusa_dist.engine.start: deterministic tokens, no torch, sockets between ranks, failures on demand.

Token i of a request depends on its prompt and i alone. prompt_ids = (pace in ms per step, poison, ...): a poison of
p > 0 makes the engine raise when it is to make token p. The model's name chooses how the start fails.
"""

import os
import socket
import time
from pathlib import Path

from medusa_dist.config import Config
from medusa_dist.engine.stats import EngineStats
from medusa_dist.errors import ModelError, RequestError
from medusa_dist.request import FinishReason, Output, Request, SpeculationStats


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


class FakeEngine:
    def __init__(self, links: list[socket.socket]):
        self._links = links
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
        return [self._next(name) for name in list(self._running)]

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
        self.engine = FakeEngine(self._links) if rank == 0 else None
        self.facts = {"vocab_size": 997, "max_model_len": 10_000, "speculation": "off", "seconds": {"load": 0.0}}

    def follow(self) -> None:
        (link,) = self._links
        while (word := link.recv(1)) == b"s":
            link.sendall(b"a")
        if word != b"q":
            raise ConnectionError("rank 0 closed the connection")
