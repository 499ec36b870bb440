"""The compiled small operations against transformers' modules, and that a row does not depend on the batch."""

import pytest
import torch
from torch.nn import functional as F
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from medusa_dist.ops.cpu import layer_kernel
from medusa_dist.ops.cpu.layer_ops import add, add_rms_norm, rms_norm, silu_mul, warm_up

DTYPES = [torch.float32, torch.bfloat16]
WIDTHS = [1, 7, 64, 577]
dtypes, widths = pytest.mark.parametrize("dtype", DTYPES), pytest.mark.parametrize("width", WIDTHS)


def rows(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within the last bit of the dtype, or two of float32, since sums have another order."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    return torch.allclose(got.float(), expected.float(), rtol=1e-6 if got.dtype == torch.float32 else 8e-3, atol=1e-7)


@dtypes
@widths
@pytest.mark.parametrize("norm_class", [LlamaRMSNorm, Gemma2RMSNorm])
def test_norms_equal_transformers_modules(norm_class: type, dtype: torch.dtype, width: int) -> None:
    norm = norm_class(width, eps=1e-6)
    norm.weight.data = rows(1, width, dtype, 1)[0]
    norm.to(dtype)
    x, residual = rows(5, width, dtype), rows(5, width, dtype, 2)
    adds_one = norm_class is Gemma2RMSNorm
    with torch.no_grad():
        assert close(rms_norm(x, norm.weight, 1e-6, adds_one), norm(x))
        summed, normed = add_rms_norm(x, residual, norm.weight, 1e-6, adds_one)
        assert torch.equal(summed, x + residual) and close(normed, norm(x + residual))


@dtypes
@widths
def test_silu_times_up_and_sums_equal_torch(dtype: torch.dtype, width: int) -> None:
    both = rows(4, 2 * width, dtype) * 4
    assert close(silu_mul(both), F.silu(both[:, :width]) * both[:, width:])
    x, y = rows(4, width, dtype), rows(4, width, dtype, 1)
    assert torch.equal(add(x, y), x + y)


def test_special_numbers_stay_what_they_are() -> None:
    odd = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e38, -1e38, 1e-40]])
    for dtype in DTYPES:
        x = odd.to(dtype)
        assert torch.equal(add(x, torch.zeros_like(x)).isnan(), x.isnan())
        finite = x[:, x[0] != -float("inf")]  # of which torch makes NaN, and we the limit, 0
        both = torch.cat([finite, torch.ones_like(finite)], dim=1)
        assert torch.allclose(silu_mul(both).float(), F.silu(finite).float(), equal_nan=True)
        assert rms_norm(x, torch.ones(8, dtype=dtype), 1e-6, False).isnan().any()


@dtypes
def test_a_row_is_the_same_in_any_batch_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    many, weight = rows(300, 576, dtype), rows(1, 576, dtype, 1)[0]
    calls = [
        lambda x: rms_norm(x, weight, 1e-5, False),
        lambda x: add_rms_norm(x, x, weight, 1e-5, True)[1],
        silu_mul,
        lambda x: add(x, x),
    ]
    for call in calls:
        whole = call(many)
        for count in (1, 2, 17):
            assert torch.equal(call(many[-count:].clone()), whole[-count:])


def test_warm_up_compiles_all_that_is_called_later() -> None:
    loops = layer_kernel.add_and_normalize, layer_kernel.silu_times_up, layer_kernel.add
    for dtype in DTYPES:
        warm_up(dtype)
    before = [len(loop.signatures) for loop in loops]
    for dtype in DTYPES:
        x, weight = rows(3, 8, dtype), rows(1, 8, dtype)[0]
        for adds_one in (False, True):
            add_rms_norm(x, x, weight, 1e-5, adds_one)
            rms_norm(x, weight, 1e-5, adds_one)
        add(silu_mul(torch.cat([x, x], dim=1)), x)
    assert [len(loop.signatures) for loop in loops] == before
