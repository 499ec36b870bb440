"""Loops for the small operations between matrix products: RMSNorm, with the sum before it, and SiLU times up.

Owns the arithmetic, compiled by numba. Not here: their callers (layer_ops.py), the modules they stand for
(model/fused_layers.py), the same for GPUs (ops/gpu/layer_kernels.py).
They compute in float32 and round where transformers' modules round, so that only the order of RMSNorm's sum and the
last bit of an exponential differ. A row is computed by itself, so its bits do not depend on the batch.
Shapes: T rows, H hidden size, I intermediate size.
"""

from typing import Any

import numpy as np
from numba import njit

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.cpu.loop_parts import VERSION, at, exp_of_negative, read, round_like, rounded
from medusa_dist.ops.cpu.numba_cache import kept_on_disk

assert VERSION == 1  # cached code is reused as long as this file does not change


@njit(fastmath={"contract", "reassoc", "nsz"}, nogil=True)
def _sum_of_squares(row: Array) -> Any:
    total = np.float32(0)
    for i in range(row.size):
        x = read(row[i])
        total += x * x
    return total


@kept_on_disk
@njit(fastmath={"contract"}, error_model="numpy", nogil=True)
def add_and_normalize(
    x: int, residual: int, summed: int, weight: int, out: int, width: int, eps: np.float32, adds_one: bool, like: Any,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Rows begin .. end - 1 of x [T, H]: summed = x + residual, out = RMSNorm of it. Addresses of elements like `like`.

    residual 0: none, and summed is not written. adds_one: the scale is 1 + weight and is applied before rounding
    (Gemma); else weight, after it (Llama).
    """
    scales = at(weight, 0, width, like)
    for t in range(begin, end):
        row, target = at(x, t * width, width, like), at(out, t * width, width, like)
        if residual:
            other, total = at(residual, t * width, width, like), at(summed, t * width, width, like)
            for i in range(width):
                total[i] = round_like(read(row[i]) + read(other[i]), like)
            row = total
        inverse = np.float32(1) / np.sqrt(_sum_of_squares(row) / np.float32(width) + eps)
        if adds_one:
            for i in range(width):
                target[i] = round_like(read(row[i]) * inverse * (np.float32(1) + read(scales[i])), like)
        else:
            for i in range(width):
                target[i] = round_like(rounded(read(row[i]) * inverse, like) * read(scales[i]), like)


@kept_on_disk
@njit(fastmath={"contract"}, error_model="numpy", nogil=True)
def silu_times_up(gate_up: int, out: int, width: int, like: Any, begin: int, end: int) -> None:
    """Rows begin .. end - 1 of gate_up [T, 2 I]: out [T, I] = silu(gate) * up. Addresses; I is the width."""
    for t in range(begin, end):
        gate, up = at(gate_up, 2 * t * width, width, like), at(gate_up, (2 * t + 1) * width, width, like)
        target = at(out, t * width, width, like)
        for i in range(width):
            x = read(gate[i])
            e = exp_of_negative(-abs(x))
            # The exponential does not fall below 1e-38, so x must not outgrow it.
            part = max(x, np.float32(-88.0)) * e if x < np.float32(0) else x
            activated = part / (np.float32(1) + e)
            target[i] = round_like(rounded(activated, like) * read(up[i]), like)


@kept_on_disk
@njit(nogil=True)
def add(x: int, y: int, out: int, width: int, like: Any, begin: int, end: int) -> None:
    """Rows begin .. end - 1 of x + y [T, H], to out. Addresses."""
    for t in range(begin, end):
        left, right = at(x, t * width, width, like), at(y, t * width, width, like)
        target = at(out, t * width, width, like)
        for i in range(width):
            target[i] = round_like(read(left[i]) + read(right[i]), like)
