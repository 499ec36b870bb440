"""Config keys of what Ray reserves for a replica, and of CPU threads.

Owns these keys. Not here: the bundles made of them (serve/placement.py).
"""

from typing import Annotated

from pydantic import Field

from medusa_dist.config_parts.strict import Strict


class ResourcesConfig(Strict):
    """What Ray reserves for one replica: one bundle per rank; bundle 0 also holds the replica actor."""

    cpus_per_rank: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="CPUs reserved for each rank (a reservation, not a thread limit)."
    )
    front_cpus: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="CPUs reserved for the replica's HTTP process, in bundle 0 with rank 0."
    )
    threads_per_rank: int | None = Field(
        ge=1,
        default=None,
        description="CPU threads of each rank's tensor operations. None: when serving, one less than the node's cores, "
        "divided by the ranks; in LLM, all cores. More threads than free cores make a step many times slower.",
    )
