"""Placement check: bundles, replicas and nodes that a Serve config requires.

Owns the number of nodes. Pure functions. Not here: the bundles themselves (serve/placement.py), memory (memory.py).
"""

from dataclasses import dataclass

from ray.serve.schema import ServeApplicationSchema

from medusa_dist.config import Config
from medusa_dist.serve.placement import Bundle, bundles


@dataclass(frozen=True)
class Placement:
    """bundles: of one replica; bundle 0 has the replica actor. replicas: (min, max). nodes: minimum for max replicas.

    nodes is None on CPUs, because it depends on the machines.
    """

    bundles: list[Bundle]
    strategy: str
    replicas: tuple[int, int]
    nodes: int | None
    gpus_per_node: int

    @property
    def total(self) -> Bundle:
        """Total resources of one replica."""
        keys = sorted({key for bundle in self.bundles for key in bundle})
        return {key: round(sum(bundle.get(key, 0.0) for bundle in self.bundles), 4) for key in keys}


def place(config: Config, application: ServeApplicationSchema, gpus_per_node: int) -> Placement:
    """The placement of a config with a resolved device."""
    overrides = application.deployments[0].model_dump(exclude_unset=True) if application.deployments else {}
    strategy = str(overrides.get("placement_group_strategy") or "STRICT_PACK")
    if config.autoscaling is not None:
        replicas = (config.autoscaling.min_replicas, config.autoscaling.max_replicas)
    else:
        count = overrides.get("num_replicas")
        replicas = (count, count) if isinstance(count, int) else (1, 1)
    ranks = config.tensor_parallel_size
    nodes: int | None = None
    if config.device == "cuda":
        per_node = gpus_per_node // ranks
        nodes = -(-replicas[1] // per_node) if per_node else -(-replicas[1] * ranks // gpus_per_node)
    return Placement(bundles(config, front=True), strategy, replicas, nodes, gpus_per_node)


def misplacements(config: Config, plan: Placement, application: ServeApplicationSchema) -> list[str]:
    """One line per reason why Ray can never place a replica."""
    problems = []
    ranks = config.tensor_parallel_size
    if config.device == "cuda" and plan.strategy == "STRICT_PACK" and ranks > plan.gpus_per_node:
        problems.append(
            f"tensor_parallel_size {ranks} needs {ranks} GPUs on one node, but --gpus-per-node is "
            f"{plan.gpus_per_node}; set deployments[0].placement_group_strategy: PACK to span nodes (slower)"
        )
    overrides = application.deployments[0].model_dump(exclude_unset=True) if application.deployments else {}
    if overrides.get("placement_group_bundles"):
        problems.append(
            "deployments[0].placement_group_bundles: the bundles are derived from tensor_parallel_size and resources "
            f"({plan.bundles}); remove the key"
        )
    return problems
