"""A few rows times a panel of 16 columns, in vectors: the inner loop of CPU attention, for scores and for values.

Owns the loop, written in LLVM's vectors: from a loop over scalars, LLVM makes a third of the speed, since it must check
before each short run whether arrays overlap. Not here: what is multiplied (ops/attention/paged_cpu_kernel.py).
Each sum is one chain of multiply-adds in order, so its bits depend neither on the number of rows nor on the CPU's
vector length.
"""

from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

VERSION = 1  # raise it with every change here: files with loops assert it, so that they are compiled anew
PANEL = 16  # columns

# Sums in registers: one AVX-512 register holds a row of the panel; other CPUs need two or four for it.
_MOST_ROWS = 8 if binding.get_host_cpu_features().get("avx512f") else 4
_I32, _I64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_SUMS = ir.VectorType(_FLOAT, PANEL)
_FUSED = ("contract",)


def _products_of(num_rows: int) -> Any:
    """An intrinsic: out [num_rows, PANEL] = or += a [num_rows, count] @ b [count, PANEL].

    Arguments are addresses and, in elements, steps from row to row: a, a_step, b, b_step, count >= 1, out, out_step;
    then whether it adds to out, and an element like those of b. a and out are float32.
    """

    @intrinsic
    def products(
        _: Any, a: Any, a_step: Any, b: Any, b_step: Any, count: Any, out: Any, out_step: Any, adds: Any, like: Any
    ) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            *numbers, adds, _ = arguments
            _emit(builder, num_rows, numbers, adds, is_float=like == types.float32)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7, types.boolean, like), generate

    return products


def _emit(builder: Any, num_rows: int, numbers: list[Any], adds: Any, is_float: bool) -> None:
    a, a_step, b, b_step, count, out, out_step = numbers
    a = builder.inttoptr(a, _FLOAT.as_pointer())
    b = builder.inttoptr(b, (_FLOAT if is_float else ir.IntType(16)).as_pointer())
    out = builder.inttoptr(out, _FLOAT.as_pointer())
    rows = [ir.Constant(_I64, row) for row in range(num_rows)]
    places = [builder.bitcast(builder.gep(out, [builder.mul(out_step, row)]), _SUMS.as_pointer()) for row in rows]
    zero = ir.Constant(_SUMS, [0.0] * PANEL)
    firsts = [builder.select(adds, builder.load(place, align=4), zero) for place in places]
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    k, sums = builder.phi(_I64), [builder.phi(_SUMS) for _ in rows]
    line = _read_line(builder, builder.gep(b, [builder.mul(k, b_step)]), is_float)
    added = []
    for row, total in zip(rows, sums, strict=True):
        number = builder.load(builder.gep(a, [builder.add(builder.mul(a_step, row), k)]), align=4)
        product = builder.fmul(_repeated(builder, number), line, flags=_FUSED)
        added.append(builder.fadd(total, product, flags=_FUSED))
    following = builder.add(k, ir.Constant(_I64, 1))
    k.add_incoming(ir.Constant(_I64, 0), before)
    k.add_incoming(following, loop)
    for total, first, more in zip(sums, firsts, added, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(more, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    for place, total in zip(places, added, strict=True):
        builder.store(total, place, align=4)


def _read_line(builder: Any, address: Any, is_float: bool) -> Any:
    """PANEL neighbouring elements as float32: float32, or bfloat16 by its bits."""
    if is_float:
        return builder.load(builder.bitcast(address, _SUMS.as_pointer()), align=4)
    words = ir.VectorType(_I32, PANEL)
    stored = builder.load(builder.bitcast(address, ir.VectorType(ir.IntType(16), PANEL).as_pointer()), align=2)
    wide = builder.shl(builder.zext(stored, words), ir.Constant(words, [16] * PANEL))
    return builder.bitcast(wide, _SUMS)


def _repeated(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(_SUMS, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, PANEL), [0] * PANEL))


_one, _two, _three, _four, _eight = (_products_of(rows) for rows in (1, 2, 3, 4, 8))


@njit(nogil=True)
def multiply_rows(
    a: int, a_step: int, b: int, b_step: int, count: int, out: int, out_step: int, rows: int, adds: bool, like: Any
) -> None:
    """out [rows, PANEL] = a [rows, count] @ b [count, PANEL], or += if `adds`.

    Addresses, and steps from row to row in elements. a and out are float32; b has elements like `like`: float32, or
    bfloat16 as int16. Nothing checks bounds.
    """
    row = 0
    if _MOST_ROWS == 8:
        while row + 8 <= rows:
            _eight(a + 4 * row * a_step, a_step, b, b_step, count, out + 4 * row * out_step, out_step, adds, like)
            row += 8
    while row + 4 <= rows:
        _four(a + 4 * row * a_step, a_step, b, b_step, count, out + 4 * row * out_step, out_step, adds, like)
        row += 4
    a, out = a + 4 * row * a_step, out + 4 * row * out_step
    if rows - row == 3:
        _three(a, a_step, b, b_step, count, out, out_step, adds, like)
    elif rows - row == 2:
        _two(a, a_step, b, b_step, count, out, out_step, adds, like)
    elif rows - row == 1:
        _one(a, a_step, b, b_step, count, out, out_step, adds, like)
