"""What compiled loops are made of: arrays at an address, bfloat16 by its bits, rounding, a vectorised exponential.

Owns these functions. Not here: the loops; what they take of a tensor (arrays.py).
Loops take addresses, as in C: for a few rows, making array objects in Python takes longer than the loops.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

VERSION = 1  # raise it with every change here: files with loops assert it, so that they are compiled anew


@intrinsic
def _pointer(_context: Any, address: Any, like: Any) -> Any:
    """A pointer to elements of the type of `like`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), generate


@intrinsic
def _bytes(_context: Any, like: Any) -> Any:
    """The size of an element of the type of `like`."""

    def generate(_: Any, __: Any, ___: Any, ____: Any) -> Any:
        return ir.Constant(ir.IntType(64), like.bitwidth // 8)

    return types.int64(like), generate


@njit(inline="always")
def at(address: int, first: int, size: int, like: Any) -> Any:
    """The array [size] that begins `first` elements of the type of `like` after an address. Nothing checks that it is
    there.
    """
    return carray(_pointer(address + first * _bytes(like), like), (size,))


@intrinsic
def as_float(_context: Any, _bits: Any) -> Any:
    """float32 of the same 32 bits."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def as_int(_context: Any, _number: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def read(_context: Any, stored: Any) -> Any:
    """float32 of a stored number: float32 as it is, bfloat16 (as int16) from its bits."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        if stored == types.float32:
            return arguments[0]
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(stored), generate


@intrinsic
def round_like(_context: Any, number: Any, like: Any) -> Any:
    """A float32 as it is stored in an array with elements like `like`: itself, or bfloat16 rounded to even."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        value = arguments[0]
        if like == types.float32:
            return value
        i32 = ir.IntType(32)
        raw = builder.bitcast(value, i32)
        odd = builder.and_(builder.lshr(raw, ir.Constant(i32, 16)), ir.Constant(i32, 1))
        rounded = builder.lshr(builder.add(raw, builder.add(odd, ir.Constant(i32, 0x7FFF))), ir.Constant(i32, 16))
        # Rounding would turn some NaN into infinity or zero.
        is_nan = builder.fcmp_unordered("uno", value, value)
        kept = builder.select(is_nan, ir.Constant(i32, 0x7FC0), rounded)
        return builder.trunc(kept, ir.IntType(16))

    return like(number, like), generate


@njit(inline="always")
def rounded(number: np.float32, like: Any) -> Any:
    """A float32 rounded as `round_like` does, as float32."""
    return read(round_like(number, like))


@njit(inline="always", fastmath={"contract"})
def exp_of_negative(x: np.float32) -> Any:
    """e**x for x <= 0 within 2 units in the last place, without a branch, so that loops over it are vectorised
    (Cephes).

    Clamped at -87, where it is 1e-38; NaN stays NaN.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    # Adding 1.5 * 2**23 rounds to an integer. ln 2 is split into two parts, the first exact in few bits.
    n = (x * np.float32(1.44269504) + np.float32(12582912.0)) - np.float32(12582912.0)
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    return p * as_float((np.int32(n) + np.int32(127)) << np.int32(23))
