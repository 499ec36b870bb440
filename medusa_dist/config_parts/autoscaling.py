"""Config keys of autoscaling: bounds, target load, delays.

Owns these keys and their checks. Not here: the policy (serve/autoscaling.py).
"""

from typing import Annotated

from pydantic import Field, model_validator

from medusa_dist.config_parts.strict import Strict


class AutoscalingConfig(Strict):
    """More replicas under load, fewer without. Load = running and waiting sequences, as counted by the replicas.

    Desired replicas = load / target_sequences, rounded up. See docs/autoscaling.md.
    """

    min_replicas: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Minimum number of replicas. Not 0: a large model loads for minutes, longer than the client whose "
        "request started it would wait.",
    )
    max_replicas: Annotated[int, Field(ge=1)] = Field(
        description="Maximum number of replicas. No default: it depends on the cluster's size and your budget."
    )
    target_sequences: float | None = Field(
        gt=0,
        default=None,
        description="Running and waiting sequences per replica. None: max_running, so that a replica is added when the "
        "others are full; a lower value keeps a reserve for bursts and makes each response faster.",
    )
    upscale_delay_s: Annotated[float, Field(ge=0)] = Field(
        default=3.0,
        description="Seconds for which the load must require more replicas before one is added. Serve's default of 30 "
        "would add to the model's load time.",
    )
    downscale_delay_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0,
        description="Seconds for which the load must require fewer replicas, without a break, before any is stopped. "
        "Well above the model's load time.",
    )
    interval_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        default=1.0,
        description="Seconds between two load reports of a replica. Serve's default of 10 would delay every reaction.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "AutoscalingConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"autoscaling.max_replicas ({self.max_replicas}) is below autoscaling.min_replicas "
                f"({self.min_replicas})"
            )
        return self
