"""Config keys of deadlines.

Owns these keys and their checks. Not here: the waits themselves.
"""

from typing import Annotated

from pydantic import Field, model_validator

from medusa_dist.config_parts.strict import Strict


class TimeoutsConfig(Strict):
    """Deadlines in seconds. Every wait has one, and an error that names what was awaited."""

    placement_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="Until Ray has placed and started all ranks."
    )
    load_s: Annotated[float, Field(gt=0)] = Field(
        default=1800.0, description="Until all ranks have loaded and warmed up. Large models load for minutes."
    )
    step_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Limit of a step's collectives; a rank that takes longer counts as dead."
    )
    heartbeat_s: Annotated[float, Field(gt=0)] = Field(
        default=5.0,
        description="Interval at which an idle engine sends a heartbeat to the other ranks; well below step_s.",
    )
    stall_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="A client that reads nothing for this long while output is pending is disconnected."
    )
    restart_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0,
        description="A failed group must decode again within this time, otherwise Serve replaces the replica.",
    )

    @model_validator(mode="after")
    def _heartbeat_below_step(self) -> "TimeoutsConfig":
        if self.heartbeat_s * 2 > self.step_s:
            raise ValueError(
                f"timeouts.heartbeat_s ({self.heartbeat_s:g}) must be at most half of step_s ({self.step_s:g})"
            )
        return self
