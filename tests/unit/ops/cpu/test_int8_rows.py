"""Rows as two 8-bit digits, and sums back, against the same in tensor operations."""

import pytest
import torch

from medusa_dist.ops.cpu import int8_kernel
from medusa_dist.ops.cpu.int8_rows import ZERO, compile_int8, join_rows, split_rows
from tests.support.int8_oracle import DTYPES, numbers_of, rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 64, 577])
def test_digits_write_the_rounded_numbers(dtype: torch.dtype, width: int) -> None:
    x = rows(9, width, dtype)
    digits, scales = split_rows(x)
    assert digits.dtype == torch.uint8 and digits.shape == (18, width)
    assert digits.min() >= 1 and digits.max() <= 255
    largest = x.double().abs().amax(dim=1)
    assert torch.equal(scales, largest.float() / 32258)
    exact = x.double() * (32258 / largest)[:, None]
    # float32 holds 24 bits, so a number near the middle of two integers may fall to either side.
    assert ((numbers_of(digits) - exact).abs() <= 0.5 + 32258 * 2**-23).all()


def test_zeros_and_tiny_rows_are_zeros_and_nan_stays_nan() -> None:
    x = torch.tensor([[0.0, -0.0], [1e-38, -1e-40], [float("nan"), 1.0], [float("inf"), 1.0]])
    digits, scales = split_rows(x)
    assert (digits[:2] == ZERO).all() and (digits[4:6] == ZERO).all() and scales.tolist()[:2] == [0, 0]
    back = join_rows(digits.float() - ZERO, scales, None, torch.float32)
    assert (back[:2] == 0).all() and back[2].isnan().all() and not back[3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_joined_sums_equal_tensor_operations(dtype: torch.dtype, has_bias: bool) -> None:
    sums, scales = rows(12, 33).round() * 1000, rows(1, 6)[0].abs() + 0.1
    bias = rows(1, 33, dtype, 1)[0] if has_bias else None
    expected = (254 * sums[:6] + sums[6:]).double() * scales.double()[:, None]
    expected = expected if bias is None else expected + bias.double()
    got = join_rows(sums, scales, bias, dtype)
    relative = 1e-5 if dtype == torch.float32 else 2**-8
    assert got.dtype == dtype and torch.allclose(got.double(), expected, rtol=relative, atol=1e-2)


def test_all_that_is_called_later_is_compiled_first() -> None:
    for dtype in DTYPES:
        compile_int8(dtype)
    before = len(int8_kernel.split.signatures), len(int8_kernel.join.signatures)
    for dtype in DTYPES:
        x = rows(3, 8, dtype)
        for bias in (None, x[0]):
            join_rows(rows(6, 8), split_rows(x)[1], bias, dtype)
    assert (len(int8_kernel.split.signatures), len(int8_kernel.join.signatures)) == before
