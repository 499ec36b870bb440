"""Packed weights: a row has the same bits among any number of rows, in the model's dtype and in 8 bits, whose products
are those of the rounded numbers.
"""

import pytest
import torch

from medusa_dist.ops.cpu import packed_weights
from medusa_dist.ops.cpu.int8_rows import split_rows
from medusa_dist.ops.cpu.packed_weights import Int8Weight, PackedWeight, int8_refusal, quantize_weight, rows_at_once
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(960, 576), (576, 1536), (8192, 576), (67, 31)])
def test_a_packed_row_is_the_same_among_any_number_of_rows(
    outputs: int, inputs: int, dtype: torch.dtype, bias: bool
) -> None:
    """With AMX, oneDNN's own products of more than 32 rows are not."""
    weight = PackedWeight.pack(rows(outputs, inputs, dtype, 1))
    assert weight is not None
    x, added = rows(300, inputs, dtype), rows(1, outputs, dtype, 2)[0] if bias else None
    few = torch.cat([weight.linear(part, added) for part in x.split(6)])
    for count in (*range(2, 70), 96, 97, 127, 128, 129, 200, 257, 300):
        assert torch.equal(weight.linear(x[:count], added), few[:count])
    deep = weight.linear(x.view(3, 100, inputs), added)
    assert deep.shape == (3, 100, outputs) and torch.equal(deep.view(300, outputs), few)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_or_two_packed_rows_have_the_bits_they_have_among_eight(dtype: torch.dtype) -> None:
    """Few inputs, and many rows: with AMX, one number in 80,000 of oneDNN's own products of two rows is another."""
    weight, x = PackedWeight.pack(rows(64, 24, dtype, 1)), rows(16_000, 24, dtype)
    assert weight is not None
    few = torch.cat([weight.linear(part, None) for part in x.tensor_split(2000)])
    for count in (1, 2, 3):
        parts = torch.cat([weight.linear(x[i : i + count], None) for i in range(0, 12_000, count)])
        assert torch.equal(parts[:12_000], few[:12_000])


def test_rows_at_once_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose bits change above 20 rows, and one that changes at 3."""
    for changes_at, expected in ((21, 16), (3, 8), (10_000, None), (33, 32)):

        def product(x, packed, bias, at=changes_at):
            return torch.full((len(x), 4), float(len(x) >= at and len(x) != 8))

        monkeypatch.setattr(packed_weights, "_packed_product", product)
        assert rows_at_once.__wrapped__(torch.float32) == expected
