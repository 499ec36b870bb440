"""Registry of attention backends, and the choice of one for a rank.

Owns the names of the config key `attention_backend` and the choice of `auto`. Not here: the backends (padded.py,
paged_cpu.py).
"""

from collections.abc import Callable

import torch

from medusa_dist.errors import ConfigError
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.attention.padded import KEY_CHUNK, PaddedBackend, attend_exact, attend_sdpa
from medusa_dist.ops.attention.paged_cpu import KERNEL_DTYPES, PagedCpuBackend

# name -> backend for (head_dim, query heads that share a KV head)
BACKENDS: dict[str, Callable[[int, int], AttentionBackend]] = {
    "paged_cpu": lambda head_dim, queries_per_head: PagedCpuBackend(),
    "exact": lambda head_dim, queries_per_head: PaddedBackend(attend_exact, head_dim, queries_per_head, KEY_CHUNK),
    "sdpa": lambda head_dim, queries_per_head: PaddedBackend(attend_sdpa, head_dim, queries_per_head, None),
}


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend of a rank. auto: paged_cpu on a CPU, exact on a CPU for a dtype that it does not support, else sdpa.

    Raises ConfigError for a backend that cannot run there.
    """
    runs_paged = device.type == "cpu" and dtype in KERNEL_DTYPES
    if name == "auto":
        return "paged_cpu" if runs_paged else "exact" if device.type == "cpu" else "sdpa"
    if name == "paged_cpu" and not runs_paged:
        raise ConfigError(
            f"attention_backend: paged_cpu runs on a CPU in float32 or bfloat16, not on {device.type} in "
            f"{str(dtype).removeprefix('torch.')}; use auto, exact or sdpa"
        )
    return name
