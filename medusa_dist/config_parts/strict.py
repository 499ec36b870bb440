"""Strict: the base class of all config groups.

Owns what holds for every key. Not here: the keys (config.py, http.py).
"""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of all config classes: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
