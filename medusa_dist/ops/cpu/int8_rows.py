"""Rows of numbers as 8-bit integers with a scale each, and sums of products back as numbers.

Owns the conversion of tensors for the compiled loops, and how many threads run them. Not here: the loops
(int8_kernel.py), the product (packed_weights.py).
"""

from contextlib import suppress
from functools import cache, partial

import torch
from torch import Tensor

from medusa_dist.ops.cpu.arrays import ELEMENT
from medusa_dist.ops.cpu.int8_kernel import quantize, rescale
from medusa_dist.ops.cpu.numba_cache import first_calls
from medusa_dist.ops.cpu.openmp import share_rows

INT8_MAX = 127
ZERO = 128  # what 0 is stored as


@cache
def compile_int8(dtype: torch.dtype) -> None:
    """Compile the loops for rows of this dtype and of float32, or load them from disk."""
    with first_calls(quantize), suppress(OSError):  # a full disk: the compiled code is still in memory
        for each in (torch.float32, dtype):
            values, scales = quantize_rows(torch.zeros(0, 1, dtype=each))
            rescale_rows(values.float(), scales, None, each)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, I] float32 or bfloat16 -> uint8 [T, I] and scales [T], so that x is about (integer - ZERO) times scale.

    The largest magnitude of a row becomes 127; ties are rounded to even. A row of zeros has scale 0.
    """
    x = x.contiguous()
    values, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(x.shape[0])
    num_rows, width = x.shape
    work = partial(quantize, x.data_ptr(), values.data_ptr(), scales.data_ptr(), width, ELEMENT[x.dtype])
    share_rows(work, num_rows, width)
    return values, scales


def rescale_rows(sums: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums [T, O] float32 times scales [T], plus bias [O], in dtype; sums may be overwritten."""
    num_rows, width = sums.shape
    assert sums.is_contiguous() and (bias is None or bias.dtype == dtype)
    out = sums if dtype == torch.float32 else torch.empty(sums.shape, dtype=dtype)
    offsets = 0 if bias is None else bias.data_ptr()
    work = partial(rescale, sums.data_ptr(), scales.data_ptr(), offsets, out.data_ptr(), width, ELEMENT[dtype])
    share_rows(work, num_rows, width)
    return out
