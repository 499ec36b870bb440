"""What a Serve config's import_path names: `medusa_dist.app:build_app`.

Owns the joining of api and serve, and the deployment's defaults; a Serve config may override these under
`deployments: - name: Medusa`. Not here: what a replica does (serve/replica.py), the keys under `args` (config.py).
Serve calls build_app by its annotation, so this module must not postpone annotations.
"""

import json
import os
from collections.abc import AsyncGenerator
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from medusa_dist.api.auth import check_api_key
from medusa_dist.api.in_process_client import Inside
from medusa_dist.api.routes import build_api
from medusa_dist.api.service import Health
from medusa_dist.config import Config
from medusa_dist.serve.placement import bundles, resolve_device
from medusa_dist.serve.rank import STACK
from medusa_dist.serve.replica import LLMReplica

DEPLOYMENT = "Medusa"
API_KEY_VARIABLE = "MEDUSA_DIST_API_KEY"  # not a config key: Serve shows configs to whoever may look
STALE_S = 10.0  # a front's report may be that late: clocks of nodes differ, and a busy front is slow


class Medusa(LLMReplica):
    """The front as api.Service knows it."""

    def health(self) -> Health:
        """Whether the model decodes, right now."""
        trouble = self.trouble
        return Health(ok=trouble is None, text=trouble or "ok")

    async def batch_line(self, line: dict[str, Any]) -> AsyncGenerator[dict[str, str], None]:
        """Answer a line of a batch job; yields one item, since Ray Data's ServeDeploymentProcessor wants a generator.

        line: {"url": path of a route, "body": JSON of its body}. No API key is asked for: who may call this may do
        anything in the cluster.
        """
        reply = await self._inside.post(line["url"], json.loads(line["body"]))
        yield {"reply": json.dumps(reply.as_dict())}

    @cached_property
    def _inside(self) -> Inside:
        return Inside(build_api(lambda: self))


def build_app(args: Config) -> Application:
    """One model's application. Cheap: nothing is loaded here. Raises ConfigError for what cannot work anywhere."""
    return assemble(args, STACK)


def assemble(args: Config, stack: str) -> Application:
    """build_app with the module that makes ranks named, for tests."""
    config = resolve_device(args)
    api_key = os.environ.get(API_KEY_VARIABLE)
    if api_key is not None:
        check_api_key(api_key)

    def api() -> FastAPI:
        return build_api(current_front, api_key)

    deployment = serve.deployment(
        serve.ingress(api)(Medusa),
        name=DEPLOYMENT,
        **replicas(config),
        placement_group_bundles=bundles(config, front=True),
        placement_group_strategy="STRICT_PACK",  # a group over several nodes is slow, unless one asked for it
        # Beyond what the front admits, so that its 429 in OpenAI's shape answers and not Serve's plain text.
        max_ongoing_requests=config.max_running + config.max_queued + 32,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=60.0,
        max_constructor_retry_count=2,
    )
    return deployment.bind(config, stack)


def replicas(config: Config) -> dict[str, Any]:
    """How many replicas, and what each front's actor needs: options of serve.deployment."""
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
        target_ongoing_requests=target,  # our policy does not read it; Serve's dashboards show it
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        metrics_interval_s=scaling.interval_s,  # called deprecated, but what names its successor is not read yet
        look_back_period_s=5 * scaling.interval_s,
        policy=policy,
    )
    return {"autoscaling_config": autoscaling, "ray_actor_options": actor}


def current_front() -> Medusa:
    """The replica of this process."""
    front = serve.get_replica_context().servable_object
    assert isinstance(front, Medusa)
    return front
