"""Ray placement of a replica: one bundle per rank, with the replica actor in bundle 0.

Owns the bundle sizes and the messages about missing resources. Not here: the actors (group.py), the deployment
(app.py).
"""

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from medusa_dist.config import Config
from medusa_dist.errors import ConfigError, GroupError

Bundle = dict[str, float]


def resolve_device(config: Config) -> Config:
    """The config with device "auto" replaced: cuda if the cluster has GPUs, else cpu.

    Queries Ray and not torch, since build_app may run on a node without a GPU. Raises ConfigError
    for cuda on a cluster with too few GPUs for the group.
    """
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if config.device == "cuda" and gpus < config.tensor_parallel_size:
        raise ConfigError(
            f"device: cuda needs {config.tensor_parallel_size} GPUs (tensor_parallel_size); the cluster has {gpus:g}"
        )
    if config.device != "auto":
        return config
    return config.model_copy(update={"device": "cuda" if gpus else "cpu"})


def rank_resources(config: Config) -> Bundle:
    """Resources that one rank's actor reserves. Requires a resolved device."""
    gpu = {"GPU": 1.0} if config.device == "cuda" else {}
    return {"CPU": config.resources.cpus_per_rank, **gpu}


def bundles(config: Config, front: bool) -> list[Bundle]:
    """One bundle per rank; `front` adds the replica actor's CPUs to bundle 0. Requires a resolved device."""
    result = [rank_resources(config) for _ in range(config.tensor_parallel_size)]
    if front:
        result[0]["CPU"] = round(result[0]["CPU"] + config.resources.front_cpus, 4)
    return result


def check_bundles(group: PlacementGroup | None, config: Config) -> PlacementGroup:
    """The replica's placement group. Raises ConfigError if a Serve config's override makes the ranks not fit."""
    wanted = bundles(config, front=True)
    found = group.bundle_specs if group is not None else []
    if group is None or len(found) != len(wanted):
        raise ConfigError(
            f"placement_group_bundles: {len(found)} bundles, but tensor_parallel_size {config.tensor_parallel_size} "
            f"needs one per rank: {wanted}; remove the override from the Serve config"
        )
    for index, (have, need) in enumerate(zip(found, wanted, strict=True)):
        if any(have.get(key, 0.0) < amount for key, amount in need.items()):
            raise ConfigError(
                f"placement_group_bundles[{index}]: has {have}, needs {need}; remove the override from the Serve config"
            )
    return group


def reserve(config: Config) -> PlacementGroup:
    """A placement group for a rank group without a replica actor; the caller removes it.

    Blocks until all bundles are placed on one node. Raises GroupError after timeouts.placement_s, with the requested
    and the available resources.
    """
    wanted = bundles(config, front=False)
    group = placement_group(wanted, strategy="STRICT_PACK")
    try:
        ray.get(group.ready(), timeout=config.timeouts.placement_s)
    except GetTimeoutError:
        remove_placement_group(group)
        raise GroupError(
            f"could not place {config.tensor_parallel_size} ranks within {config.timeouts.placement_s:g} s "
            f"(timeouts.placement_s); {explain_room(wanted)}"
        ) from None
    return group


def explain_room(wanted: list[Bundle]) -> str:
    """The requested resources, and the free and total resources of each node, in one line."""
    free = ray._private.state.available_resources_per_node()
    nodes = [
        f"{node['NodeManagerAddress']}: {_amounts(free.get(node['NodeID'], {}))} free of {_amounts(node['Resources'])}"
        for node in ray.nodes()
        if node["Alive"]
    ]
    total = {key: sum(bundle.get(key, 0.0) for bundle in wanted) for key in sorted({k for b in wanted for k in b})}
    return f"requested on one node: {_amounts(total)}; nodes: {', '.join(nodes)}"


def _amounts(resources: Bundle) -> str:
    return " + ".join(f"{resources.get(key, 0.0):g} {key}" for key in ("CPU", "GPU") if key in resources) or "nothing"
