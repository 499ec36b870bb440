"""Rows in 8 bits, and sums back, against the same in tensor operations."""

import pytest
import torch

from medusa_dist.ops.cpu import int8_kernel
from medusa_dist.ops.cpu.int8_rows import ZERO, compile_int8, quantize_rows, rescale_rows
from tests.support.int8_oracle import DTYPES, quantized, rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 64, 577])
def test_rows_are_rounded_as_defined(dtype: torch.dtype, width: int) -> None:
    x = rows(9, width, dtype)
    values, scales = quantize_rows(x)
    expected, expected_scales = quantized(x)
    got, exact = values.to(torch.int64) - ZERO, x.double() * (127 / x.double().abs().amax(dim=1))[:, None]
    assert values.dtype == torch.uint8 and torch.equal(scales, expected_scales)
    # A compiler may fuse the product with the rounding, so that a tie falls to the other side.
    assert ((got - exact).abs() <= 0.5 + 1e-4).all() and (got != expected).sum() <= got.numel() // 100
    assert ((values.float() - ZERO) * scales[:, None] - x.float()).abs().max() <= scales.max() / 2 * 1.01


def test_zeros_and_tiny_rows_are_zeros_and_nan_stays_nan() -> None:
    x = torch.tensor([[0.0, -0.0], [1e-38, -1e-40], [float("nan"), 1.0], [float("inf"), 1.0]])
    values, scales = quantize_rows(x)
    assert (values[:2] == ZERO).all() and scales.tolist()[:2] == [0, 0]
    back = rescale_rows((values.float() - ZERO), scales, None, torch.float32)
    assert (back[:2] == 0).all() and back[2].isnan().all() and not back[3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_rescaled_sums_equal_tensor_operations(dtype: torch.dtype, has_bias: bool) -> None:
    sums, scales = rows(6, 33) * 1000, rows(1, 6).abs()[0] + 0.1
    bias = rows(1, 33, dtype, 1)[0] if has_bias else None
    expected = sums * scales[:, None] + (0 if bias is None else bias.float())
    got = rescale_rows(sums.clone(), scales, bias, dtype)
    assert got.dtype == dtype and torch.allclose(
        got.float(), expected.to(dtype).float(), rtol=1e-6 + (dtype.itemsize < 4) * 8e-3
    )


def test_all_that_is_called_later_is_compiled_first() -> None:
    for dtype in DTYPES:
        compile_int8(dtype)
    before = len(int8_kernel.quantize.signatures), len(int8_kernel.rescale.signatures)
    for dtype in DTYPES:
        x = rows(3, 8, dtype)
        for bias in (None, x[0]):
            rescale_rows(rows(3, 8), quantize_rows(x)[1], bias, dtype)
    assert (len(int8_kernel.quantize.signatures), len(int8_kernel.rescale.signatures)) == before
