"""RMSNorm, sums and SiLU times up as compiled loops over torch's tensors, on torch's threads.

Owns what the loops take of tensors, and compilation before the first step. Not here: the loops (layer_kernel.py).
Tensors are contiguous, and of a dtype in KERNEL_DTYPES.
"""

from contextlib import suppress
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.cpu import layer_kernel
from medusa_dist.ops.cpu.arrays import ELEMENT
from medusa_dist.ops.cpu.numba_cache import first_calls
from medusa_dist.ops.cpu.openmp import share_rows

expert_product: None = None  # transformers' loop, which knows on a CPU which experts are needed


@cache
def warm_up(dtype: torch.dtype) -> None:
    """Compile the loops for this dtype (some 2 s) or load them from disk, so that no step waits for it."""
    none, one = torch.zeros(0, 2, dtype=dtype), torch.ones(2, dtype=dtype)
    with first_calls(layer_kernel.add):
        with suppress(OSError):  # a full disk: the compiled code is still in memory
            rms_norm(none, one, 1e-5, False)
        with suppress(OSError):
            silu_mul(none)
        with suppress(OSError):
            add(none, none)


def rms_norm(x: Tensor, weight: Tensor, eps: float, adds_one: bool) -> Tensor:
    """RMSNorm over the last dimension of x [..., H]."""
    return _normalized(x.contiguous(), (0, 0), weight, eps, adds_one)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, adds_one: bool) -> tuple[Tensor, Tensor]:
    """x + residual, both [..., H], and the RMSNorm of the sum."""
    assert x.is_contiguous() and residual.is_contiguous()
    summed = torch.empty(x.shape, dtype=x.dtype)
    return summed, _normalized(x, (residual.data_ptr(), summed.data_ptr()), weight, eps, adds_one)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, both [..., H]."""
    assert x.is_contiguous() and y.is_contiguous()
    out, width = torch.empty(x.shape, dtype=x.dtype), x.shape[-1]
    work = partial(layer_kernel.add, x.data_ptr(), y.data_ptr(), out.data_ptr(), width, ELEMENT[x.dtype])
    share_rows(work, x.numel() // width, width)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 I], gate before up -> [..., I]."""
    assert gate_up.is_contiguous()
    width = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype)
    work = partial(layer_kernel.silu_times_up, gate_up.data_ptr(), out.data_ptr(), width, ELEMENT[out.dtype])
    share_rows(work, out.numel() // width, width)
    return out


def _normalized(x: Tensor, sums: tuple[int, int], weight: Tensor, eps: float, adds_one: bool) -> Tensor:
    """sums: addresses of the residual and of its sum with x, or zeros."""
    out, width = torch.empty(x.shape, dtype=x.dtype), weight.shape[0]
    work = partial(
        layer_kernel.add_and_normalize,
        *(x.data_ptr(), *sums, weight.data_ptr(), out.data_ptr(), width, np.float32(eps), adds_one, ELEMENT[x.dtype]),
    )
    share_rows(work, x.numel() // width, width)
    return out
