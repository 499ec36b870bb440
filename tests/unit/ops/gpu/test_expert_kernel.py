"""Products with the matrices of experts: tiles by their definition, the kernel interpreted against plain products.

Not in bfloat16: the interpreter cuts off where a GPU rounds.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medusa_dist.ops.gpu.expert_kernel import ExpertRoutes, expert_product
from tests.support.attention_cases import needs_triton
from tests.support.expert_twin import expert_product as twin

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}
GPU = torch.device("cuda", 0)


def routed(num_rows: int, num_chosen: int, num_experts: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_rows, num_experts, generator=generator).topk(num_chosen).indices


def defined(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """Pair by pair, in float64."""
    pairs = experts.flatten()
    rows = x.double().repeat_interleave(pairs.numel() // len(x), dim=0)
    return torch.stack([weight[expert].double() @ row for row, expert in zip(rows, pairs, strict=True)])


@given(num_rows=st.integers(1, 40), num_experts=st.integers(1, 9), seed=st.integers(0, 9), data=st.data())
@settings(deadline=None)
def test_each_pair_is_in_one_tile_of_its_expert(num_rows: int, num_experts: int, seed: int, data) -> None:
    experts = routed(num_rows, data.draw(st.integers(1, num_experts)), num_experts, seed)
    if seed == 0:
        experts[:] = experts[:1]  # all rows to the same experts: the fewest tiles are used
    routes = ExpertRoutes.of(experts, num_experts)
    pairs = experts.flatten()
    seen = []
    for expert, begin, end in routes.tiles.tolist():
        assert 0 <= expert < num_experts and 0 <= end - begin <= routes.tile_pairs
        own = routes.order[begin:end]
        assert (pairs[own] == expert).all()
        seen += own.tolist()
    assert sorted(seen) == list(range(pairs.numel()))
    assert routes.tiles.shape == ExpertRoutes.of(torch.zeros_like(experts), num_experts).tiles.shape


CASES = [(1, 2, 4, 48, 67), (5, 2, 4, 130, 33), (40, 2, 3, 64, 64), (70, 1, 1, 97, 5), (9, 8, 60, 32, 16)]


@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_rows", "num_chosen", "num_experts", "num_in", "num_out"), CASES)
def test_products_equal_their_definition(
    num_rows: int, num_chosen: int, num_experts: int, num_in: int, num_out: int, dtype: torch.dtype
) -> None:
    """Of rows, each for all its experts, and of pairs; tiles of 16 and of 64 pairs; rows that are not contiguous."""
    check(num_rows, num_chosen, num_experts, num_in, num_out, dtype, torch.device("cpu"), TOLERANCE[dtype])


def check(
    num_rows: int,
    num_chosen: int,
    num_experts: int,
    num_in: int,
    num_out: int,
    dtype: torch.dtype,
    device: torch.device,
    tolerance: float,
) -> None:
    torch.manual_seed(1)
    experts = routed(num_rows, num_chosen, num_experts).to(device)
    weight = (torch.randn(num_experts, num_out, num_in) / num_in**0.5).to(device=device, dtype=dtype)
    routes = ExpertRoutes.of(experts, num_experts)
    for count in (num_rows, num_rows * num_chosen):
        x = torch.randn(count, 2 * num_in).to(device=device, dtype=dtype)[:, ::2][:, :num_in]
        for rows in (x, x.contiguous()):
            found = expert_product(rows, weight, routes)
            assert found.shape == (num_rows * num_chosen, num_out) and found.dtype == dtype
            wanted = defined(rows, weight, experts)
            torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(twin(rows, weight, routes).double(), wanted, atol=tolerance, rtol=tolerance)


def test_few_pairs_have_small_tiles_and_many_have_large_ones() -> None:
    sizes = [ExpertRoutes.of(routed(rows, 2, 4), 4).tile_pairs for rows in (1, 32, 33, 200)]
    assert sizes == [16, 16, 64, 64]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 16, 300])
def test_products_on_a_gpu_equal_their_definition(num_rows: int, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    check(num_rows, 2, 8, 512, 300, dtype, GPU, tolerance)
