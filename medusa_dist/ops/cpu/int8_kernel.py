"""Loops that round rows to 8 bits and scale sums of 8-bit products, compiled by numba.

Owns the arithmetic. Not here: their caller (int8_rows.py), the same in tensor operations
(tests/unit/ops/cpu/test_int8_rows.py).
A row is computed by itself, by the same loop, so its bits do not depend on the batch.
"""

from typing import Any

import numpy as np
from numba import njit

from medusa_dist.ops.cpu.loop_parts import VERSION, as_float, as_int, at, read, round_like
from medusa_dist.ops.cpu.numba_cache import kept_on_disk

assert VERSION == 1  # cached code is reused as long as this file does not change
_MAGNITUDE = np.int32(0x7FFFFFFF)
_TINY = np.float32(1e-30)  # below it, 127 / x may overflow
_TO_INTEGER = np.float32(12582912.0)  # adding 1.5 * 2**23 rounds to an integer, ties to even
_ZERO = np.int32(128)


@kept_on_disk
@njit(error_model="numpy", nogil=True)
def quantize(x: int, values: int, scales: int, width: int, like: Any, begin: int, end: int) -> None:
    """Rows begin .. end - 1 of x [T, I] -> values [T, I] uint8, 128 for zero, and scales [T] float32. Addresses; x has
    elements like `like`.
    """
    for t in range(begin, end):
        row = at(x, t * width, width, like)
        out = at(values, t * width, width, np.uint8(0))
        top = np.int32(0)  # of the magnitude's bits, which are in the order of the magnitudes
        for i in range(width):
            top = max(top, as_int(read(row[i])) & _MAGNITUDE)
        largest = as_float(top)
        vanishes = largest <= _TINY  # False for NaN, which the scale passes on
        inverse = np.float32(0) if vanishes else np.float32(127.0) / largest
        for i in range(width):
            out[i] = np.uint8(np.int32((read(row[i]) * inverse + _TO_INTEGER) - _TO_INTEGER) + _ZERO)
        at(scales, t, 1, np.float32(0))[0] = np.float32(0) if vanishes else largest / np.float32(127.0)


@kept_on_disk
@njit(error_model="numpy", nogil=True)
def rescale(sums: int, scales: int, bias: int, out: int, width: int, like: Any, begin: int, end: int) -> None:
    """Rows begin .. end - 1: out = sums [T, O] * scales [T] + bias [O]; bias 0: none. Addresses; sums and scales are
    float32, the others like `like`. out may be sums.
    """
    for t in range(begin, end):
        row = at(sums, t * width, width, np.float32(0))
        target = at(out, t * width, width, like)
        scale = at(scales, t, 1, np.float32(0))[0]
        if bias:
            offsets = at(bias, 0, width, like)
            for i in range(width):
                target[i] = round_like(row[i] * scale + read(offsets[i]), like)
        else:
            for i in range(width):
                target[i] = round_like(row[i] * scale, like)
