"""Backends of `LLM`: the engine in this process, or a group of ranks on Ray.

Owns the choice between the two. Not here: text and tokens (llm.py), the group itself (serve/local_group.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from medusa_dist.config import Config
from medusa_dist.engine.messages import Command, Refusal, Submit
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.errors import ConfigError, RequestError
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.outputs import Output
from medusa_dist.serve.local_group import LocalGroup

OF_A_SERVICE: dict[str, Any] = {
    "max_queued": True,
    "page": True,
    "log_format": True,
    "tracing": True,
    "http": True,
    "files": True,
    "autoscaling": True,
    "resources": {"front_cpus": True},
}


def refuse_service_keys(options: Mapping[str, Any], keys: Mapping[str, Any] = OF_A_SERVICE, before: str = "") -> None:
    """Raise ConfigError for a key that applies only to a service and has no effect in LLM."""
    for key, inner in keys.items():
        if key not in options:
            continue
        if inner is True:
            raise ConfigError(f"{before}{key}: applies only to a service, not to LLM; remove it")
        if isinstance(options[key], Mapping):
            refuse_service_keys(options[key], inner, f"{before}{key}.")


class Backend(Protocol):
    """Decodes requests: the engine in this process, or a group of ranks."""

    facts: dict[str, Any]

    def send(self, commands: Sequence[Command]) -> None:
        """Send submits and aborts, in order."""

    def receive(self) -> Iterable[Output | Refusal]:
        """The outputs of the next step or steps. Blocks."""

    def close(self) -> None:
        """Stop it and everything it started."""


class LocalBackend:
    """The engine in this process."""

    def __init__(self, config: Config) -> None:
        rank = EngineRank(config, model_folder(config))
        assert rank.engine is not None
        self.facts = rank.facts
        self.engine = rank.engine
        self._refusals: list[Refusal] = []

    def send(self, commands: Sequence[Command]) -> None:
        """Pass commands to the engine. A request that can never be served is refused in the next `receive`."""
        for command in commands:
            if isinstance(command, Submit):
                try:
                    self.engine.submit(command.request, command.output_ids)
                except RequestError as error:
                    self._refusals.append(Refusal(command.request.request_id, error))
            else:
                self.engine.abort(command.request_id)

    def receive(self) -> Sequence[Output | Refusal]:
        """The refusals since the last call, before anything is decoded; without any, the outputs of one step."""
        if self._refusals:
            refusals, self._refusals = self._refusals, []
            return refusals
        return self.engine.step() if self.engine.has_work else []

    def close(self) -> None:
        """Nothing to stop: no other process was started."""


def start_backend(config: Config) -> Backend:
    """Start one rank in this process, or several on Ray. Raises ConfigError, ModelError or GroupError."""
    return LocalBackend(config) if config.tensor_parallel_size == 1 else LocalGroup(config)
