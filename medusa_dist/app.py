"""Serve application builder, the import_path of Serve configs: `medusa_dist.app:build_app`.

Owns the assembly of api/ and serve/, and the deployment's defaults. Not here: what a replica does (serve/replica.py),
the keys under `args` (config.py). A Serve config may override the defaults under `deployments: - name: Medusa`.
Serve calls build_app by its type annotation, so this module must not postpone annotations.
"""

import asyncio
import json
import math
import os
from collections.abc import AsyncGenerator
from functools import cached_property
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from medusa_dist.api.auth import check_api_key
from medusa_dist.api.batches.low_priority import LowPriority, places
from medusa_dist.api.batches.run import Lines
from medusa_dist.api.batches.worker import BatchWorker
from medusa_dist.api.in_process_client import InProcessReply, Inside
from medusa_dist.api.routes import build_api
from medusa_dist.api.service import Health, Load, Service
from medusa_dist.config import Config
from medusa_dist.config_parts.files import AUTO
from medusa_dist.config_parts.http import API_KEY_VARIABLE
from medusa_dist.errors import StorageOffError
from medusa_dist.serve.placement import bundles, resolve_device
from medusa_dist.serve.rank import STACK
from medusa_dist.serve.replica import LLMReplica
from medusa_dist.storage.store import Store, open_store
from medusa_dist.tracing.open_tracing import check_tracing, open_tracing

DEPLOYMENT = "Medusa"
STALE_S = 10.0  # a replica's report may be this late: node clocks differ, and a busy replica reports slowly


class Medusa(LLMReplica):
    """The replica as an api Service, with a worker for batches."""

    async def __init__(self, config: Config, stack: str = STACK) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(config, stack)
        store = files_of(config)
        self._worker: BatchWorker | None = None
        if isinstance(store, Store):
            self._worker = BatchWorker(store, self._batch_lines(), self._metrics)
            self._worker.start()

    async def __del__(self) -> None:
        """Called once by Serve when the replica stops: first the batches, whose lines go on in the next replica."""
        worker: BatchWorker | None = getattr(self, "_worker", None)
        if worker is not None:
            await worker.stop()
        await super().__del__()
        tracer = open_tracing(self._config.tracing) if hasattr(self, "_config") else None
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    def health(self) -> Health:
        """Whether the model decodes now."""
        trouble = self.trouble
        return Health(ok=trouble is None, text=trouble or "ok")

    def load(self) -> Load:
        """What the replica does, as of the group's last report."""
        stats = self.stats
        return Load(
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_used_fraction=stats.kv_used_fraction,
            num_tokens=stats.num_tokens,
            num_sequence_steps=stats.num_sequence_steps,
        )

    async def batch_line(self, line: dict[str, Any]) -> AsyncGenerator[dict[str, str], None]:
        """Process a batch line; yields one item, because Ray Data's ServeDeploymentProcessor requires a generator.

        line: {"url": path of a route, "body": JSON of its body}. No API key is required: a caller with access to this
        method already has access to the whole cluster.
        """
        reply = await self._inside.post(line["url"], json.loads(line["body"]))
        yield {"reply": json.dumps(reply.as_dict())}

    def _batch_lines(self) -> Lines:
        """How lines of /v1/batches are processed: by the routes of HTTP, behind all other requests."""
        config = self._config
        num_places = places(config.max_running, config.max_queued)
        behind = cast(Service, LowPriority(self, num_places, config.max_running))
        inside = Inside(build_api(lambda: behind, http=config.http, tracer=open_tracing(config.tracing)))

        async def send(url: str, body: dict[str, Any]) -> InProcessReply:
            return await inside.post(url, body, busy_s=math.inf)  # a batch has a time limit of its own

        return Lines(send, lambda: self.health().ok, asyncio.Semaphore(num_places))

    @cached_property
    def _inside(self) -> Inside:
        config = self._config
        return Inside(build_api(lambda: self, http=config.http, tracer=open_tracing(config.tracing)))


def build_app(args: Config) -> Application:
    """The application for one model. Loads nothing. Raises ConfigError for a config that cannot work anywhere."""
    return assemble(args, STACK)


def assemble(args: Config, stack: str) -> Application:
    """build_app with an explicit rank module, for tests."""
    check_tracing(args.tracing)  # raises here, rather than in each replica
    config = resolve_device(args)
    api_key = os.environ.get(API_KEY_VARIABLE)
    if api_key is not None:
        check_api_key(api_key)

    open_store(config.files, config.name)  # the same

    def api() -> FastAPI:
        return api_of(config, api_key)

    deployment = serve.deployment(
        serve.ingress(api)(Medusa),
        name=DEPLOYMENT,
        **replicas(config),
        **logs(config),
        placement_group_bundles=bundles(config, front=True),
        placement_group_strategy="STRICT_PACK",  # a group that spans nodes is slow; a Serve config can override this
        # More than the replica admits, so that clients get its 429 in OpenAI's format and not Serve's plain text.
        max_ongoing_requests=config.max_running + config.max_queued + 32,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=60.0,
        max_constructor_retry_count=2,
    )
    return deployment.bind(config, stack)


def api_of(config: Config, api_key: str | None) -> FastAPI:
    """The HTTP application of a replica; called in its process."""
    return build_api(
        current_front,
        api_key,
        config.http,
        behind_serve=True,
        store=files_of(config),
        page=config.page,
        tracer=open_tracing(config.tracing),
    )


def files_of(config: Config) -> Store | StorageOffError:
    """The store of files and batches, as this replica sees it."""
    num_nodes = sum(bool(node["Alive"]) for node in ray.nodes()) if config.files.store == AUTO else 1
    return open_store(config.files, config.name, num_nodes)


def logs(config: Config) -> dict[str, Any]:
    """Options of serve.deployment: how the replica logs. Without log_format: json, Serve's own default."""
    return {"logging_config": {"encoding": "JSON"}} if config.log_format == "json" else {}


def replicas(config: Config) -> dict[str, Any]:
    """Options of serve.deployment: the number of replicas and the resources of each replica actor."""
    actor: dict[str, Any] = {"num_cpus": config.resources.front_cpus, "num_gpus": 0}
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": 1, "ray_actor_options": actor}
    target = scaling.target_sequences or config.max_running
    policy = AutoscalingPolicy(
        policy_function="medusa_dist.serve.autoscaling:QueueDepthPolicy",
        policy_kwargs={"target_sequences": target, "stale_s": STALE_S + 3 * scaling.interval_s},
    )
    autoscaling = AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=target,  # not used by our policy, but shown in Serve's dashboards
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        metrics_interval_s=scaling.interval_s,  # deprecated, but Serve does not read its successor yet
        look_back_period_s=5 * scaling.interval_s,
        policy=policy,
    )
    return {"autoscaling_config": autoscaling, "ray_actor_options": actor}


def current_front() -> Medusa:
    """The replica in this process."""
    front = serve.get_replica_context().servable_object
    assert isinstance(front, Medusa)
    return front
