"""Registry of attention backends, and the choice of one for a rank.

Owns the names of the config key `attention_backend` and the choice of `auto`. Not here: the backends (padded.py,
paged_cpu.py, triton_backend.py).
"""

from collections.abc import Callable

import torch

from medusa_dist.errors import ConfigError
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.attention.padded import KEY_CHUNK, PaddedBackend, attend_exact, attend_sdpa
from medusa_dist.ops.attention.paged_cpu import PagedCpuBackend
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.cpu.arrays import KERNEL_DTYPES
from medusa_dist.ops.gpu.language import refusal

TRITON = "triton"  # with it, Triton's kernels run everywhere, not in attention alone

# name -> backend for (head_dim, query heads that share a KV head, dtype)
BACKENDS: dict[str, Callable[[int, int, torch.dtype], AttentionBackend]] = {
    "paged_cpu": lambda head_dim, per_head, dtype: PagedCpuBackend(),
    TRITON: TritonBackend,
    "exact": lambda head_dim, per_head, dtype: PaddedBackend(attend_exact, head_dim, per_head, KEY_CHUNK),
    "sdpa": lambda head_dim, per_head, dtype: PaddedBackend(attend_sdpa, head_dim, per_head, None),
}


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend of a rank.

    auto: paged_cpu on a CPU, exact on a CPU for a dtype that it does not support; sdpa on a GPU, since the kernels of
    triton have not run on one yet. Raises ConfigError for a backend that cannot run there.
    """
    runs_paged = device.type == "cpu" and dtype in KERNEL_DTYPES
    if name == "auto":
        return "paged_cpu" if runs_paged else "exact" if device.type == "cpu" else "sdpa"
    if name == "paged_cpu" and not runs_paged:
        raise ConfigError(
            f"attention_backend: paged_cpu runs on a CPU in float32 or bfloat16, not on {device.type} in "
            f"{str(dtype).removeprefix('torch.')}; use auto, exact or sdpa"
        )
    if name == TRITON and (reason := refusal(device)) is not None:
        raise ConfigError(f"attention_backend: triton {reason}; use auto, exact or sdpa")
    return name
