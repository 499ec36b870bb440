"""Rotary positions of a draft layer: the frequencies that a published config asks for, and their application.

Owns the kinds default, linear, llama3 and yarn. Not here: the layer (layer.py), the base model's own rotation, which
is transformers'. Frequencies that change with the length of the text (dynamic, longrope) are refused by name.
Shapes: N rows, d head_dim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medusa_dist.errors import HeadsError


@dataclass(frozen=True)
class Rotary:
    """theta: the base of the frequencies. kind: default, linear, llama3 or yarn, whose numbers are in `scaling`."""

    theta: float = 10_000.0
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    max_positions: int = 2048

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Rotary":
        """From a transformers config: `rope_parameters`, or `rope_theta` and `rope_scaling`. Raises HeadsError."""
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
        needed = {
            "default": (),
            "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": ("factor",),
        }
        if kind not in needed:
            raise HeadsError(
                f"heads: config.json has rotary positions of type {kind!r}; those served are {', '.join(needed)}"
            )
        missing = [key for key in needed[kind] if key not in scaling]
        if missing:
            raise HeadsError(f"heads: config.json has rotary positions of type {kind!r} without {missing[0]}")
        theta = scaling.get("rope_theta") or config.get("rope_theta") or cls.theta
        return cls(float(theta), kind, dict(scaling), int(config.get("max_position_embeddings") or cls.max_positions))

    def frequencies(self, head_dim: int) -> tuple[Tensor, float]:
        """[d / 2] float32 radians per position, and the factor on cosines and sines."""
        plain = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        if self.kind == "linear":
            return plain / float(self.scaling["factor"]), 1.0
        if self.kind == "llama3":
            return self._llama3(plain), 1.0
        if self.kind == "yarn":
            return self._yarn(plain, head_dim)
        return plain, 1.0

    def _llama3(self, plain: Tensor) -> Tensor:
        """Long waves are stretched by the factor, short ones kept, those between interpolated."""
        low, high = float(self.scaling["low_freq_factor"]), float(self.scaling["high_freq_factor"])
        turns = float(self.scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * plain + (1 - kept) * plain / float(self.scaling["factor"])

    def _yarn(self, plain: Tensor, head_dim: int) -> tuple[Tensor, float]:
        """YaRN (arXiv 2309.00071): a ramp over dimensions between kept and stretched frequencies, and a temperature."""
        get = self.scaling.get
        factor = float(self.scaling["factor"])
        original = float(get("original_max_position_embeddings") or self.max_positions)

        def dimension(turns: float) -> float:
            """The dimension whose wave makes so many turns in the original length."""
            return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(float(get("beta_fast") or 32)), dimension(float(get("beta_slow") or 1))
        if get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)

        def strength(scale: float) -> float:
            return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

        if get("attention_factor") is not None:
            temperature = float(self.scaling["attention_factor"])
        elif get("mscale") and get("mscale_all_dim"):
            temperature = strength(float(self.scaling["mscale"])) / strength(float(self.scaling["mscale_all_dim"]))
        else:
            temperature = strength(1.0)
        return ramp * plain / factor + (1 - ramp) * plain, temperature


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, factor: float) -> Tensor:
    """x [N, heads, d] rotated to positions [N]: halves of a head are pairs, as in Llama. In float32, result as x."""
    angles = positions.to(frequencies.dtype)[:, None] * frequencies  # [N, d / 2]
    cosines, sines = (angles.cos() * factor)[:, None], (angles.sin() * factor)[:, None]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1).to(x.dtype)
