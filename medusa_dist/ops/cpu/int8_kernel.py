"""Loops that write rows as two 8-bit digits, and make numbers of the sums of their products, compiled by numba.

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
_BASE, _OF_BASE = np.float32(254.0), np.float32(1.0 / 254.0)
_LARGEST = np.float32(127 * 254)  # so that both digits are within -127 .. 127


@kept_on_disk
@njit(error_model="numpy", nogil=True)
def split(x: int, digits: int, scales: int, rows: int, width: int, like: Any, begin: int, end: int) -> None:
    """Rows begin .. end - 1 of x [T, I] -> digits [2 T, I] uint8, 128 for zero, and scales [T] float32. Addresses; x
    has elements like `like`, rows is T.

    x is about scale * (254 * high + low): high digits are rows 0 .. T - 1, low ones follow.
    """
    for t in range(begin, end):
        row = at(x, t * width, width, like)
        high, low = at(digits, t * width, width, np.uint8(0)), at(digits, (rows + t) * width, width, np.uint8(0))
        top = np.int32(0)  # of the magnitude's bits, which are in the order of the magnitudes
        for i in range(width):
            top = max(top, as_int(read(row[i])) & _MAGNITUDE)
        largest = as_float(top)
        vanishes = largest <= _TINY  # False for NaN, which the scale passes on
        inverse = np.float32(0) if vanishes else _LARGEST / largest
        for i in range(width):
            number = (read(row[i]) * inverse + _TO_INTEGER) - _TO_INTEGER
            first = (number * _OF_BASE + _TO_INTEGER) - _TO_INTEGER
            high[i] = np.uint8(np.int32(first) + _ZERO)
            low[i] = np.uint8(np.int32(number - first * _BASE) + _ZERO)
        at(scales, t, 1, np.float32(0))[0] = np.float32(0) if vanishes else largest / _LARGEST


@kept_on_disk
@njit(error_model="numpy", nogil=True)
def join(sums: int, scales: int, bias: int, out: int, rows: int, width: int, like: Any, begin: int, end: int) -> None:
    """Rows begin .. end - 1: out [T, O] = scales [T] * (254 * the sums of the high digits + those of the low) + bias
    [O]; bias 0: none. Addresses; sums [2 T, O] and scales are float32, the others like `like`; rows is T.
    """
    for t in range(begin, end):
        high, low = at(sums, t * width, width, np.float32(0)), at(sums, (rows + t) * width, width, np.float32(0))
        target, scale = at(out, t * width, width, like), at(scales, t, 1, np.float32(0))[0]
        if bias:
            offsets = at(bias, 0, width, like)
            for i in range(width):
                target[i] = round_like((high[i] * _BASE + low[i]) * scale + read(offsets[i]), like)
        else:
            for i in range(width):
                target[i] = round_like((high[i] * _BASE + low[i]) * scale, like)
