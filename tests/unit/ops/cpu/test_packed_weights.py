"""Weights in 8 bits: products are those of the rounded numbers, and exact, so that rows are independent."""

import pytest
import torch

from medusa_dist.ops.cpu import packed_weights
from medusa_dist.ops.cpu.int8_rows import split_rows
from medusa_dist.ops.cpu.packed_weights import Int8Weight, int8_refusal, quantize_weight
from medusa_dist.ops.linear import Linear
from tests.support.int8_oracle import DTYPES, numbers_of, rows

needs_vnni = pytest.mark.skipif(int8_refusal() is not None, reason=f"int8 products: {int8_refusal()}")


def test_weights_are_rounded_to_a_127th_of_each_outputs_largest() -> None:
    weight = rows(5, 16)
    weight[3] = 0
    values, scales = quantize_weight(weight)
    assert values.dtype == torch.int8 and scales.shape == (5,) and scales[3] == 0
    assert values[[0, 1, 2, 4]].abs().amax(dim=1).tolist() == [127] * 4 and (values[3] == 0).all()
    assert ((values * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()


@needs_vnni
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_that_of_the_rounded_numbers(dtype: torch.dtype) -> None:
    x, weight = rows(5, 96, dtype), rows(67, 96, dtype, 1)
    digits, scales = split_rows(x)
    values, weight_scales = quantize_weight(weight)
    exact = (numbers_of(digits) @ values.long().t()).double() * scales.double()[:, None] * weight_scales.double()
    got = Int8Weight(weight).linear(x, None)
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    assert got.dtype == dtype and (got.double() - exact).abs().max() <= rounding * exact.abs().max()
    plain = x.float() @ weight.float().t()
    assert (got.float() - plain).abs().mean() < 0.015 * plain.abs().mean()


@needs_vnni
def test_one_large_number_in_a_row_leaves_the_others_their_precision() -> None:
    x, weight = rows(4, 96), rows(67, 96, seed=1)
    x[:, 5] = 400.0
    weight[:, 5] = 0  # so that only the others count
    plain = x @ weight.t()
    assert (Int8Weight(weight).linear(x, None) - plain).abs().mean() < 0.02 * plain.abs().mean()


@needs_vnni
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    form, x = Int8Weight(rows(67, 96, dtype, 1)), rows(70, 96, dtype)
    whole = form.linear(x, None)
    for count in range(1, 70):
        assert torch.equal(form.linear(x[:count], None), whole[:count]), count


@needs_vnni
def test_linear_layer_in_8_bits_has_its_bias_and_a_quarter_of_the_bytes() -> None:
    weight, bias = rows(64, 96, seed=1), rows(1, 64, seed=2)[0]
    plain, packed = Linear(weight, bias, prepack=False), Linear(weight, bias, prepack=False)
    packed.pack(Int8Weight)
    x = rows(4, 96)[None]
    assert packed.weight is None and packed.is_packed and packed.packed_bytes == 64 * 96 + 64 * 4
    assert packed(x).shape == (1, 4, 64) and (packed(x) - plain(x)).abs().mean() < 0.03 * plain(x).abs().mean()


def test_sums_that_overflow_are_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CPUs without VNNI, which add pairs of products in 16 bits."""
    int8_refusal.cache_clear()
    true = packed_weights._int8_product
    try:
        if int8_refusal() is None:
            monkeypatch.setattr(packed_weights, "_int8_product", lambda *given: true(*given).clamp(-32768, 32767))
            int8_refusal.cache_clear()
            assert "VNNI" in str(int8_refusal())

        def missing(*_: object) -> None:
            raise AttributeError("no operator qlinear_pointwise")

        monkeypatch.setattr(packed_weights, "_int8_product", missing)
        int8_refusal.cache_clear()
        assert "no operator" in str(int8_refusal())
    finally:
        int8_refusal.cache_clear()


@needs_vnni
def test_no_rows_give_no_rows() -> None:
    assert Int8Weight(rows(7, 8)).linear(torch.zeros(1, 0, 8), None).shape == (1, 0, 7)
