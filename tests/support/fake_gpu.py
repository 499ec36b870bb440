"""Fake tensors of a GPU on a CPU build of torch: shapes and devices, no data, and errors where data would be needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = torch.device("cuda", 0)


def _getitem(self: Tensor, key: Any) -> Tensor:
    """Tensor.__getitem__ in operators: its own code asks for a real device first."""
    keys = list(key) if isinstance(key, tuple) else [key]
    used = sum(one is not None and one is not Ellipsis for one in keys)
    dots = next((i for i, one in enumerate(keys) if one is Ellipsis), None)
    if dots is not None:
        keys[dots : dots + 1] = [slice(None)] * (self.dim() - used)
    out, dim = self, 0
    for one in keys:
        if one is None:
            out = out.unsqueeze(dim)
        elif isinstance(one, slice):
            out = torch.ops.aten.slice.Tensor(out, dim, one.start, one.stop, one.step or 1)
        elif isinstance(one, int):
            out = out.select(dim, one)
            continue
        else:
            out = torch.ops.aten.index.Tensor(out, [*[None] * dim, one])
        dim += 1
    return out


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within the block, new tensors on GPU are fake."""
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.object(Tensor, "__getitem__", _getitem):
        yield


def like(tensor: Tensor) -> Tensor:
    """A fake one of its form on the GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def move(module: nn.Module) -> None:
    """Make all parameters and buffers fake ones on the GPU."""
    for part in module.modules():
        for names in (part._parameters, part._buffers):
            for key, tensor in names.items():
                if isinstance(tensor, nn.Parameter):
                    names[key] = nn.Parameter(like(tensor), requires_grad=False)
                elif tensor is not None:
                    names[key] = like(tensor)
