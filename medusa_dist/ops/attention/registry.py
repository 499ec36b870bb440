"""Which attention backends there are, and which one a rank uses.

Owns the names of the config key `attention_backend` and the choice of `auto`. Not here: the backends.
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
    """The backend that a rank uses. auto: paged_cpu on a CPU, exact there for a dtype it does not know, sdpa elsewhere.

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
