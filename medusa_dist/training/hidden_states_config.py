"""Config of the ranks that compute hidden states: the keys of a service, and the job.

Owns the keys. Not here: what the ranks do with them (hidden_states_rank.py). No torch: a rank reads this before its
thread count is set.
"""

from pathlib import Path

from pydantic import Field

from medusa_dist.config import Config


class HiddenStatesConfig(Config):
    """One pass over a file of answers."""

    answers: Path = Field(description="The file that distill wrote.")
    target: Path = Field(description="Where rank 0 writes the result.")
    key: str = Field(
        description="hidden_states.data_key of the driver's data; a rank that sees other data raises an error."
    )
    aux_layers: tuple[int, ...] = Field(description="Aux layers whose hidden states are kept as well.")
    with_prompts: bool = Field(default=False, description="Keep the hidden states of prompts as well.")
