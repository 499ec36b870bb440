"""Rows in 8 bits by their definition, in tensor operations."""

import torch

DTYPES = [torch.float32, torch.bfloat16]


def rows(count: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, in tensor operations."""
    wide = x.float()
    largest = wide.abs().amax(dim=1)
    return (wide * (127 / largest)[:, None]).round().to(torch.int64), largest / 127
