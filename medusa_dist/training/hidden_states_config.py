"""What ranks are told that read answers instead of serving: a service's keys, and the job.

Owns the keys. Not here: what the ranks do with them (places_rank.py). No torch: a rank reads this before its thread
count is set.
"""

from pathlib import Path

from pydantic import Field

from medusa_dist.config import Config


class PlacesConfig(Config):
    """One pass over a file of answers."""

    answers: Path = Field(description="As distill writes them.")
    target: Path = Field(description="Where rank 0 puts the places.")
    key: str = Field(description="train_data.data_key of what the driver sees; a rank that sees other data refuses.")
    taps: tuple[int, ...] = Field(description="Inner layers whose states are kept as well.")
