"""Rows and weights in 8 bits by their definition, in tensor operations."""

import torch

from medusa_dist.ops.cpu.int8_rows import ZERO

DTYPES = [torch.float32, torch.bfloat16]


def rows(count: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def numbers_of(digits: torch.Tensor) -> torch.Tensor:
    """digits [2 T, I] -> the integers [T, I] that they write."""
    high, low = (digits.to(torch.int64) - ZERO).chunk(2)
    return 254 * high + low
