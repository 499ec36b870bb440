"""LLMReplica: the Ray Serve replica, with client connections and one tensor-parallel group.

Owns what Serve calls on a replica (constructor, health check, shutdown, load) and what the routes need from a model.
Not here: the routes (api/, added in app.py), the lifetime of the group (supervisor.py). Needs no GPU.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import ray
from ray import serve

from medusa_dist.config import Config
from medusa_dist.engine.stats import EngineStats
from medusa_dist.model.source.load_tokenizer import load_tokenizer
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.http import ray_metrics
from medusa_dist.serve.metrics import ServiceMetrics
from medusa_dist.serve.placement import check_bundles
from medusa_dist.serve.rank import STACK
from medusa_dist.serve.supervisor import Supervisor
from medusa_dist.text.control_tokens import literal_encoder
from medusa_dist.text.no_tokenizer import NoTokenizer
from medusa_dist.text.tools.chat_format import ChatFormat, chat_format

logger = logging.getLogger("ray.serve")

REFRESH_S = 4.0  # between two exports of metrics that seldom change; Ray forgets them after 20 s
CALL_FILL = 3  # in batches: one is decoded, the others wait here, so that a place in it is filled at once


def system_fingerprint(config: Config, facts: Mapping[str, Any]) -> str:
    """A hash of all that determines the tokens of a seed: weights and their rounding, dtype, device, noise, library
    versions.
    """
    decisive = ("dtype", "fingerprint", "noise_version", "device", "torch", "transformers")
    known = [config.model, config.revision, *map(facts.get, decisive)]
    if config.quantization != "none":
        known.append(config.quantization)
    return "medusa-" + hashlib.blake2b(json.dumps(known, default=str).encode(), digest_size=6).hexdigest()


class LLMReplica:
    """One replica of one model. The constructor returns when the model is ready to decode.

    config: with a resolved device. stack: the module that builds ranks.
    """

    async def __init__(self, config: Config, stack: str = STACK) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config = config
        placement = check_bundles(ray.util.get_current_placement_group(), config)
        self._metrics = ServiceMetrics(config.name)
        self._supervisor = Supervisor(
            config, lambda generation: TPWorkerGroup(config, placement, generation, stack), self._metrics
        )
        await self._supervisor.start()
        self._refresher = asyncio.create_task(self._refresh_metrics())
        facts = self._facts = self._supervisor.facts
        # Bundle 0 holds rank 0 and this process, so both see the same folder.
        self._tokenizer = load_tokenizer(facts["folder"], config)
        self._chat_format = chat_format(self._tokenizer, config.tool_format, config.reasoning_format)
        if not isinstance(self._tokenizer, NoTokenizer):
            # Takes seconds for large vocabularies: not while the first message with a control token waits.
            await asyncio.to_thread(literal_encoder(self._tokenizer).prepare)
        self._created = int(time.time())
        logger.info("%s is ready: %s", config.name, json.dumps(facts, default=str))

    # Called by Ray Serve

    async def check_health(self) -> None:
        """Raise if no group can be started, so that Serve replaces this replica. During a restart it is healthy."""
        self._supervisor.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load for the autoscaling policy: requests running or waiting in this replica."""
        return {"sequences": float(self.num_requests)}

    async def __del__(self) -> None:
        """Called once by Serve when the replica stops. Leaves no process."""
        if hasattr(self, "_refresher"):
            self._refresher.cancel()
        if hasattr(self, "_supervisor"):
            await self._supervisor.stop()

    async def _refresh_metrics(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            self._metrics.refresh()

    # Called by the routes

    @property
    def name(self) -> str:
        """The model name clients use."""
        return self._config.name

    @property
    def max_model_len(self) -> int:
        """Maximum length of prompt + output, in tokens."""
        return int(self._facts["max_model_len"])

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary; token ids are smaller."""
        return int(self._facts["vocab_size"])

    @property
    def requests_per_call(self) -> int:
        """Requests of one call that may be here at a time: enough to keep the batch full, a part of the queue."""
        config = self._config
        return min(CALL_FILL * config.max_running, config.max_running + config.max_queued)

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the model, or NoTokenizer."""
        return self._tokenizer

    @property
    def sanitize_control_tokens(self) -> bool:
        """Whether control tokens in messages are plain text."""
        return self._config.sanitize_control_tokens

    @property
    def chat_format(self) -> ChatFormat:
        """How the model writes tool calls and reasoning."""
        return self._chat_format

    @property
    def system_fingerprint(self) -> str:
        """See `system_fingerprint`."""
        return system_fingerprint(self._config, self._facts)

    @property
    def created(self) -> int:
        """Start time of the replica, unix seconds."""
        return self._created

    @property
    def default_sampling_params(self) -> dict[str, Any]:
        """The model's own values of sampling fields, for requests that leave them out."""
        return dict(self._facts.get("default_sampling_params", {}))

    def describe(self) -> dict[str, Any]:
        """More fields for /v1/models."""
        scaling = self._config.autoscaling
        return {
            "speculation": self._facts["speculation"],
            "default_sampling_params": self.default_sampling_params,
            "dtype": self._facts["dtype"],
            "quantization": self._config.quantization,
            "device": self._config.device,
            "tensor_parallel_size": self._config.tensor_parallel_size,
            "max_running": self._config.max_running,
            "max_queued": self._config.max_queued,
            "max_replicas": scaling.max_replicas if scaling is not None else None,  # None: a fixed number
            "tool_format": self._chat_format.name,
            "reasoning": self._chat_format.reasons,
            "system_fingerprint": self.system_fingerprint,
        }

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The outputs of a request; see Supervisor.outputs."""
        return self._supervisor.outputs(request)

    async def abort(self, request_id: str) -> None:
        """Abort a request now; unknown and finished ids are ignored."""
        self._supervisor.abort(request_id)

    @property
    def num_requests(self) -> int:
        """Requests that run or wait in this replica."""
        return self._supervisor.num_requests

    @property
    def stats(self) -> EngineStats:
        """The counters of the current group, as of its last report."""
        return self._supervisor.stats

    async def metrics(self) -> str:
        """The metrics of this application, as Ray exports them on all nodes."""
        return await ray_metrics.read(serve.get_replica_context().app_name)

    @property
    def trouble(self) -> str | None:
        """None while the group decodes, otherwise one line with the reason."""
        return None if self._supervisor.decodes else self._supervisor.trouble
