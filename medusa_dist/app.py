"""What a Serve config's import_path names: `medusa_dist.app:build_app`.

Owns the joining of api and serve, and the deployment's defaults; a Serve config may override these under
`deployments: - name: Medusa`. Not here: what a replica does (serve/front.py), the keys under `args` (config.py).
Serve calls build_app by its annotation, so this module must not postpone annotations.
"""

import os

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from medusa_dist.api.auth import check_api_key
from medusa_dist.api.routes import build_api
from medusa_dist.api.service import Health
from medusa_dist.config import Config
from medusa_dist.serve.front import Front
from medusa_dist.serve.placement import bundles, resolve_device
from medusa_dist.serve.rank import STACK

DEPLOYMENT = "Medusa"
API_KEY_VARIABLE = "MEDUSA_DIST_API_KEY"  # not a config key: Serve shows configs to whoever may look


class Medusa(Front):
    """The front as api.Service knows it."""

    def health(self) -> Health:
        """Whether the model decodes, right now."""
        trouble = self.trouble
        return Health(ok=trouble is None, text=trouble or "ok")


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
        num_replicas=1,
        ray_actor_options={"num_cpus": config.resources.front_cpus, "num_gpus": 0},
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


def current_front() -> Medusa:
    """The replica of this process."""
    front = serve.get_replica_context().servable_object
    assert isinstance(front, Medusa)
    return front
