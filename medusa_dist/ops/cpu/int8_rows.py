"""Rows of numbers as two 8-bit digits with a scale each, and the sums of their products back as numbers.

Owns what the loops take of tensors, and compilation before the first step. Not here: the loops (int8_kernel.py), the
product (packed_weights.py).
One digit is too coarse: a few large numbers in a row set its scale, and the others lose theirs. Two digits double the
rows of a product, which costs little where reading the weight takes most of the time.
"""

from contextlib import suppress
from functools import cache, partial

import torch
from torch import Tensor

from medusa_dist.ops.cpu.arrays import ELEMENT
from medusa_dist.ops.cpu.int8_kernel import join, split
from medusa_dist.ops.cpu.numba_cache import first_calls
from medusa_dist.ops.cpu.openmp import share_rows

INT8_MAX = 127
ZERO = 128  # what 0 is stored as


@cache
def compile_int8(dtype: torch.dtype) -> None:
    """Compile the loops for rows of this dtype or load them from disk, so that no step waits for it."""
    none = torch.zeros(0, 1, dtype=dtype)
    with first_calls(split):
        with suppress(OSError):  # a full disk: the compiled code is still in memory
            split_rows(none)
        with suppress(OSError):
            join_rows(none.float(), none.float()[:, 0], None, dtype)


def split_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, I] float32 or bfloat16 -> digits [2 T, I] uint8 and scales [T] float32.

    x is about scale * (254 * high + low), where high are rows 0 .. T - 1 less ZERO, and low the others; both are within
    -127 .. 127. Ties are rounded to even. A row of zeros has scale 0.
    """
    x, (num_rows, width) = x.contiguous(), x.shape
    digits, scales = torch.empty((2 * num_rows, width), dtype=torch.uint8), torch.empty(num_rows)
    work = partial(split, x.data_ptr(), digits.data_ptr(), scales.data_ptr(), num_rows, width, ELEMENT[x.dtype])
    share_rows(work, num_rows, width)
    return digits, scales


def join_rows(sums: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums [2 T, O] float32 of digits' products, scales [T], bias [O] -> [T, O] in dtype."""
    num_rows, width = scales.shape[0], sums.shape[1]
    assert sums.is_contiguous() and sums.shape[0] == 2 * num_rows and (bias is None or bias.dtype == dtype)
    out = torch.empty((num_rows, width), dtype=dtype)
    addresses = sums.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()
    share_rows(partial(join, *addresses, num_rows, width, ELEMENT[dtype]), num_rows, width)
    return out
