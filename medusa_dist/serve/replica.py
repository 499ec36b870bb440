"""The replica of Ray Serve: holds the clients' connections and one tensor-parallel group, needs no GPU.

Owns what Serve asks of a replica (constructor, health check, end, load) and what the routes ask of a model. Not here:
the routes (api, joined in app.py), the life of the group (supervisor.py).
"""

import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import ray
from transformers import AutoTokenizer

from medusa_dist.config import Config
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.metrics import ServiceMetrics
from medusa_dist.serve.placement import check_bundles
from medusa_dist.serve.rank import STACK
from medusa_dist.serve.supervisor import Supervisor

logger = logging.getLogger("ray.serve")


class LLMReplica:
    """One replica of one model. The constructor returns when the model decodes.

    config: with a resolved device. stack: the module that makes ranks.
    """

    async def __init__(self, config: Config, stack: str = STACK) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config = config
        placement = check_bundles(ray.util.get_current_placement_group(), config)
        self._supervisor = Supervisor(
            config, lambda generation: TPWorkerGroup(config, placement, generation, stack), ServiceMetrics(config.name)
        )
        await self._supervisor.start()
        facts = self._facts = self._supervisor.facts
        # Bundle 0 holds rank 0 and this process: its folder is ours.
        self._tokenizer = AutoTokenizer.from_pretrained(
            facts["folder"], trust_remote_code=config.trust_remote_code, local_files_only=True
        )
        self._created = int(time.time())
        logger.info("%s decodes: %s", config.name, json.dumps(facts, default=str))

    # What Ray Serve asks

    async def check_health(self) -> None:
        """Raise if no group can be started any more: Serve then replaces this replica. A restart in time is healthy."""
        self._supervisor.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load that autoscaling policies see: requests running or waiting here."""
        return {"sequences": float(self._supervisor.num_requests)}

    async def __del__(self) -> None:
        """Called once by Serve when the replica ends: no process stays."""
        if hasattr(self, "_supervisor"):
            await self._supervisor.stop()

    # What the routes ask

    @property
    def name(self) -> str:
        """The model name clients use."""
        return self._config.name

    @property
    def max_model_len(self) -> int:
        """Longest prompt + output, tokens."""
        return int(self._facts["max_model_len"])

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self._facts["vocab_size"])

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the model."""
        return self._tokenizer

    @property
    def system_fingerprint(self) -> str:
        """A hash of all that decides which tokens a seed gives: weights, dtype, device, noise, library versions."""
        decisive = ("fingerprint", "noise_version", "device", "torch", "transformers")
        known = [self._config.model, self._config.revision, self._config.dtype, *map(self._facts.get, decisive)]
        return "medusa-" + hashlib.blake2b(json.dumps(known, default=str).encode(), digest_size=6).hexdigest()

    @property
    def created(self) -> int:
        """When the replica came up, unix seconds."""
        return self._created

    def describe(self) -> dict[str, Any]:
        """What else /v1/models says."""
        scaling = self._config.autoscaling
        return {
            "speculation": self._facts["speculation"],
            "dtype": self._config.dtype,
            "device": self._config.device,
            "tensor_parallel_size": self._config.tensor_parallel_size,
            "max_running": self._config.max_running,
            "max_queued": self._config.max_queued,
            "max_replicas": scaling.max_replicas if scaling is not None else None,  # None: a fixed number
            "system_fingerprint": self.system_fingerprint,
        }

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The request's outputs; see Supervisor.outputs."""
        return self._supervisor.outputs(request)

    async def abort(self, request_id: str) -> None:
        """End a request now; unknown and finished ids are ignored."""
        self._supervisor.abort(request_id)

    @property
    def trouble(self) -> str | None:
        """None while the group decodes, else one line that says why it does not."""
        return None if self._supervisor.decodes else self._supervisor.trouble
