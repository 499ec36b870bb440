"""Fused layer kernels, interpreted, against transformers' operations.

Not in bfloat16: the interpreter cuts off where a GPU rounds.
"""

import pytest
import torch
from torch.nn import functional as F

from medusa_dist.model.fused_modules import FusedRMSNorm
from medusa_dist.ops.gpu import layer_kernels
from medusa_dist.ops.gpu.layer_kernels import silu_mul
from tests.support.attention_cases import needs_triton

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
GPU = torch.device("cuda", 0)


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("adds_one", [False, True])
@pytest.mark.parametrize("width", [1, 64, 97])
def test_rms_norm_equals_its_form_in_torch(width: int, adds_one: bool, dtype: torch.dtype) -> None:
    x, residual = (3 * torch.randn(2, 5, width)).to(dtype), torch.randn(2, 5, width).to(dtype)
    norm = FusedRMSNorm(torch.randn(width).to(dtype), 1e-5, adds_one, layer_kernels)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert torch.allclose(norm(x), norm.in_torch(x), **close)
    summed, normed = norm.of_sum(x, residual)
    assert torch.equal(summed, x + residual) and torch.allclose(normed, norm.in_torch(x + residual), **close)


@needs_triton
def test_rms_norm_rounds_where_its_form_rounds() -> None:
    """Llama's norm rounds before the weight, Gemma's after: in float16 the results differ."""
    x = torch.randn(64, 97).to(torch.float16)
    weight = torch.randn(97).to(torch.float16)
    llama = FusedRMSNorm(weight, 1e-6, False, layer_kernels)
    gemma = FusedRMSNorm((weight - 1).to(torch.float16), 1e-6, True, layer_kernels)
    assert (llama(x) == llama.in_torch(x)).float().mean() > 0.99
    assert (gemma(x) == gemma.in_torch(x)).float().mean() > 0.99
    assert (gemma(x) == llama.in_torch(x)).float().mean() < 0.99


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [3, 1024, 1031])
def test_silu_times_up_equals_torch(width: int, dtype: torch.dtype) -> None:
    both = (4 * torch.randn(3, 2 * width)).to(dtype)
    gate, up = both.chunk(2, dim=-1)
    assert torch.allclose(silu_mul(both), F.silu(gate) * up, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [97, 4096, 8192])
def test_kernels_on_a_gpu_equal_torch(width: int, dtype: torch.dtype) -> None:
    x, residual = ((3 * torch.randn(33, width, device=GPU)).to(dtype) for _ in range(2))
    tolerance = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for adds_one in (False, True):
        norm = FusedRMSNorm(torch.randn(width, device=GPU).to(dtype), 1e-5, adds_one, layer_kernels)
        summed, normed = norm.of_sum(x, residual)
        assert torch.equal(summed, x + residual)
        assert torch.allclose(normed, norm.in_torch(x + residual), rtol=tolerance, atol=tolerance)
        assert torch.allclose(norm(x), norm.in_torch(x), rtol=tolerance, atol=tolerance)
    both = torch.cat([x, residual], dim=-1)
    assert torch.allclose(silu_mul(both), F.silu(x) * residual, rtol=tolerance, atol=tolerance)
