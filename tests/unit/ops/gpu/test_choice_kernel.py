"""The choice of tokens in one kernel, interpreted: the oracle's words, and its choices."""

import pytest
import torch
from torch import Tensor

from medusa_dist.ops.gpu.choice_kernel import choose, philox_words
from medusa_dist.ops.gpu.language import jit, tl
from medusa_dist.ops.gpu.launch import KernelLaunch
from medusa_dist.ops.noise import NoiseColumns, gumbel, philox
from medusa_dist.ops.sampling import lowest_argmax, perturb
from tests.support.attention_cases import needs_triton

pytestmark = pytest.mark.usefixtures("one_thread")
GPU = torch.device("cuda", 0)


@jit
def _store_words(seeds, positions, out, COUNT: tl.constexpr):
    block = tl.program_id(0) * 7919 + tl.arange(0, COUNT)
    words = philox_words(tl.load(seeds + tl.program_id(0)), tl.load(positions + tl.program_id(0)), block)
    at = out + tl.program_id(0) * COUNT * 4 + tl.arange(0, COUNT) * 4
    for index in tl.static_range(4):
        tl.store(at + index, words[index].to(tl.int64))


@needs_triton
def test_words_are_those_of_the_oracle() -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
    positions = torch.tensor([0, 5, 2**32, 2**40 + 17, 2**31, 2**32 - 1])
    out = torch.empty(6, 16, 4, dtype=torch.int64)
    KernelLaunch(_store_words, (6,), {"seeds": seeds, "positions": positions, "out": out}, {"COUNT": 16}).run()
    for row in range(6):
        block = row * 7919 + torch.arange(16)
        low, high = positions[row] & 0xFFFFFFFF, positions[row] >> 32
        key = seeds[row] & 0xFFFFFFFF, (seeds[row] >> 32) & 0xFFFFFFFF
        expected = torch.stack(philox((block, low, high, torch.tensor(0)), key), dim=-1)
        assert torch.equal(out[row], expected)


def oracle(
    logits: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor, first: int, count: int
) -> tuple[Tensor, Tensor]:
    """engine/runner/worker.py without the kernel."""
    scores, sampled = logits[:, :count].float(), temperatures > 0
    noise = gumbel(seeds[sampled], positions[sampled], NoiseColumns.of_range(first, first + count))
    scores[sampled] = perturb(scores[sampled], temperatures[sampled], noise)
    return lowest_argmax(scores)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("first", "count"), [(0, 499), (250, 249), (499, 3), (128_253, 4_099)])
def test_choices_are_those_of_the_path_in_torch(first: int, count: int, dtype: torch.dtype) -> None:
    """Greedy and sampled rows together; shards that begin inside a Philox block; prime sizes; several parts."""
    check_choices(first, count, dtype, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("first", "count"), [(0, 499), (250, 249), (499, 3), (64_128, 64_128), (1, 128_255)])
def test_choices_on_a_gpu_are_those_of_the_path_in_torch(first: int, count: int, dtype: torch.dtype) -> None:
    check_choices(first, count, dtype, GPU)


def check_choices(first: int, count: int, dtype: torch.dtype, device: torch.device) -> None:
    rows = 25
    generator = torch.Generator().manual_seed(count)
    logits = (2 * torch.randn(rows, count + 3, generator=generator)).to(dtype)
    logits[:, count:] = 1e4  # padding of the shard is never chosen
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    positions = torch.randint(0, 2**34, (rows,), generator=generator)
    temperatures = torch.tensor([0.0, 0.3, 1.0, 1.7, 25.0]).repeat(5)
    case = (*(x.to(device) for x in (logits, seeds, positions, temperatures)), first, count)
    (values, columns), (expected_values, expected) = choose(*case), oracle(*case)
    assert torch.equal(columns, expected)
    assert torch.allclose(values, expected_values, rtol=1e-6, atol=1e-6)
    assert count < 20 or len(set(columns.tolist())) > 1


@needs_triton
def test_ties_go_to_the_lowest_column_and_nan_to_none() -> None:
    logits = torch.zeros(6, 2_053)
    logits[0, [1999, 77, 2050]] = 3.0  # in different parts, and within one
    logits[1, [6, 5, 9]] = 3.0
    logits[2, 2050] = float("nan")
    logits[3] = float("nan")
    logits[4] = float("-inf")
    zeros = torch.zeros(6, dtype=torch.int64)
    values, columns = choose(logits, zeros, zeros, torch.zeros(6), 1, 2_053)
    assert columns.tolist() == [77, 5, 2_053, 2_053, 0, 0]
    expected_values, expected = lowest_argmax(logits)
    assert torch.equal(columns, expected) and torch.equal(values.isnan(), expected_values.isnan())


@needs_triton
def test_noise_differs_by_seed_position_and_temperature_only_scales_logits() -> None:
    logits = torch.zeros(4, 997)
    seeds, positions = torch.tensor([1, 2, 1, 1]), torch.tensor([3, 3, 4, 3])
    _, columns = choose(logits, seeds, positions, torch.tensor([1.0, 1.0, 1.0, 9.0]), 0, 997)
    assert columns[0] == columns[3] and len(set(columns.tolist())) == 3
