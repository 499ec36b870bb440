"""HeadsConfig: keys under `heads:`.

Owns these keys. Not here: what drafts and how much (config.py, SpeculationConfig), how heads are found and read
(engine/startup/find_heads.py).
"""

from typing import Literal

from pydantic import Field

from medusa_dist.config_parts.strict import Strict


class HeadsConfig(Strict):
    """Which heads draft for the model."""

    source: str | None = Field(
        default=None,
        description="Folder or hub id of draft heads in safetensors: those of train-heads, or published Medusa and "
        "EAGLE-3 heads as they are (docs/heads.md). None: the demo model uses its own heads; any other model drafts "
        "by lookup alone (speculation.drafters) and reports this.",
    )
    placement: Literal["rank0"] = Field(
        default="rank0", description="Where the heads are loaded. rank0: only on rank 0."
    )
    allow_untrained: bool = Field(
        default=False,
        description="Serve heads that were trained for another base model (fingerprints differ), or whose guesses are "
        "no better than chance on a fixed text at start, instead of refusing them.",
    )
