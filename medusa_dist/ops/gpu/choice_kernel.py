"""Kernel that selects a token per row: temperature, shared noise and argmax in one pass over the logits.

Owns Philox and Gumbel on a GPU, the argmax over a vocabulary shard, and their launch. Not here: what the noise is for,
and the oracle of its words (ops/noise.py), the oracle of the choice (ops/sampling.py: perturb, lowest_argmax), rows
with filters, penalties or a grammar (engine/spec/token_selector.py).
The noise [R, V] is never written. The words are the oracle's, bit for bit; logarithms are CUDA's own, as torch's are.
Shapes: R rows, V columns of the vocabulary shard, P parts of it, K Philox blocks of four tokens.
"""

import torch
from torch import Tensor

from medusa_dist.ops.gpu.language import interprets, jit, libdevice, padded, tl
from medusa_dist.ops.gpu.launch import KernelLaunch

_NO_COLUMN = tl.constexpr(2147483647)
_LARGEST_X = tl.constexpr(1.0 - 2.0**-24)
_BLOCKS = 512  # Philox blocks of one program


@jit
def philox_words(seed, position, block):
    """The four words of Philox4x32-10 for blocks [K]: counter (block, position, 0), key seed, as in ops/noise.py."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    counter = block.to(tl.uint32)
    return tl.philox(seed, counter, low, high, tl.zeros_like(low))


@jit
def _gumbel(word, USES_LIBDEVICE: tl.constexpr):
    """-log(-log1p(-x)), x = (word + 1/2) / 2^32. The interpreter has no log1p; Kahan's form of it is as accurate."""
    x = tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, _LARGEST_X)
    if USES_LIBDEVICE:
        return -libdevice.log(-libdevice.log1p(-x))
    rest = 1.0 - x
    inner = tl.where(rest == 1.0, x, tl.log(rest) * x / tl.where(rest == 1.0, 1.0, rest - 1.0))
    return -tl.log(inner)


# fmt: off
@jit
def _scored(logits, column, num_valid, word, temperature, USES_LIBDEVICE: tl.constexpr):
    # fmt: on
    """Scores of columns [K], and the columns: a very high one for those outside the shard."""
    inside = (column >= 0) & (column < num_valid)
    score = tl.load(logits + column, mask=inside, other=float("-inf")).to(tl.float32)
    if temperature > 0.0:
        score = tl.math.div_rn(score, tl.zeros_like(score) + temperature) + _gumbel(word, USES_LIBDEVICE)
    return tl.where(inside, score, float("-inf")), tl.where(inside, column, _NO_COLUMN)


@jit
def _better(score, column, other, other_column):
    """The higher score, and of equal ones the lower column."""
    wins = (other > score) | ((other == score) & (other_column < column))
    return tl.where(wins, other, score), tl.where(wins, other_column, column)


@jit
def _best(score, column, num_valid):
    """The highest score of [K] and the lowest column that has it; NaN and num_valid if there is a NaN."""
    highest = tl.max(score, axis=0)
    lowest = tl.min(tl.where(score == highest, column, _NO_COLUMN), axis=0)
    has_nan = tl.max((score != score).to(tl.int32), axis=0) > 0
    return tl.where(has_nan, float("nan"), highest), tl.where(has_nan, num_valid, lowest)


# fmt: off
@jit(do_not_specialize=["row_stride", "first_token", "num_valid", "num_parts"])
def choose_in_parts(
    logits, seeds, positions, temperatures, values, columns, row_stride, first_token, num_valid, num_parts,
    BLOCKS: tl.constexpr, USES_LIBDEVICE: tl.constexpr,
):
    # fmt: on
    """Best score and column of row program_id(0) in part program_id(1) of the shard: values, columns [R, P]."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = first_token // 4 + part * BLOCKS + tl.arange(0, BLOCKS)
    column = block * 4 - first_token
    temperature = tl.load(temperatures + row)
    a = tl.zeros([BLOCKS], tl.uint32)
    b, c, d = a, a, a
    if temperature > 0.0:
        a, b, c, d = philox_words(tl.load(seeds + row), tl.load(positions + row), block)
    here = logits + row * row_stride
    score, at = _scored(here, column, num_valid, a, temperature, USES_LIBDEVICE)
    second, second_at = _scored(here, column + 1, num_valid, b, temperature, USES_LIBDEVICE)
    third, third_at = _scored(here, column + 2, num_valid, c, temperature, USES_LIBDEVICE)
    fourth, fourth_at = _scored(here, column + 3, num_valid, d, temperature, USES_LIBDEVICE)
    nan = tl.where((second != second) | (third != third) | (fourth != fourth), float("nan"), 0.0)
    score, at = _better(score, at, second, second_at)
    third, third_at = _better(third, third_at, fourth, fourth_at)
    score, at = _better(score, at, third, third_at)
    value, lowest = _best(tl.where(nan != nan, nan, score), at, num_valid)
    tl.store(values + row * num_parts + part, value)
    tl.store(columns + row * num_parts + part, lowest)


@jit(do_not_specialize=["num_valid", "num_parts"])
def choose_part(values, columns, best, best_column, num_valid, num_parts, PARTS: tl.constexpr):
    """Best of the parts of row program_id(0): best [R], best_column [R] int64."""
    row, part = tl.program_id(0), tl.arange(0, PARTS)
    real = part < num_parts
    value = tl.load(values + row * num_parts + part, mask=real, other=float("-inf"))
    column = tl.load(columns + row * num_parts + part, mask=real, other=_NO_COLUMN)
    value, lowest = _best(value, column, num_valid)
    tl.store(best + row, value)
    tl.store(best_column + row, lowest.to(tl.int64))


def choose(
    logits: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor, first_token: int, num_valid: int
) -> tuple[Tensor, Tensor]:
    """The best score of each row and the lowest column that has it: [R] float32, [R] int64, as lowest_argmax's.

    logits [R, >= num_valid]: column v is token first_token + v. seeds, positions [R] int64: of the noise of rows whose
    temperature [R] (float32) is above 0. A row with a NaN gets NaN and column num_valid.
    """
    num_rows = logits.shape[0]
    assert logits.stride(-1) == 1 and num_valid > 0
    num_blocks = (first_token + num_valid + 3) // 4 - first_token // 4
    num_parts = -(-num_blocks // _BLOCKS)
    values = logits.new_empty((num_rows, num_parts), dtype=torch.float32)
    columns = logits.new_empty((num_rows, num_parts), dtype=torch.int32)
    best = logits.new_empty(num_rows, dtype=torch.float32)
    best_column = logits.new_empty(num_rows, dtype=torch.int64)
    parts = {"values": values, "columns": columns, "num_valid": num_valid, "num_parts": num_parts}
    rows = {"logits": logits, "seeds": seeds, "positions": positions, "temperatures": temperatures}
    KernelLaunch(
        choose_in_parts,
        (num_rows, num_parts),
        {**rows, **parts, "row_stride": logits.stride(0), "first_token": first_token},
        {"BLOCKS": _BLOCKS, "USES_LIBDEVICE": not interprets()},
    ).run()
    KernelLaunch(
        choose_part, (num_rows,), {**parts, "best": best, "best_column": best_column}, {"PARTS": padded(num_parts)}, 1
    ).run()
    return best, best_column
