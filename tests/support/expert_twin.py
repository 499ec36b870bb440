"""What the kernel of experts does, in torch on a CPU and from the same tiles; a row's bits depend on the row alone."""

from types import SimpleNamespace

import torch
from torch import Tensor

from medusa_dist.model.fused_modules import KERNELS
from medusa_dist.ops.gpu.expert_kernel import ExpertRoutes


def expert_product(x: Tensor, weight: Tensor, routes: ExpertRoutes) -> Tensor:
    """Pairs that are in no tile stay NaN."""
    num_pairs = routes.order.numel()
    out = x.new_full((num_pairs, weight.shape[1]), torch.nan)
    per_row = num_pairs // len(x)
    for expert, begin, end in routes.tiles.tolist():
        for pair in routes.order[begin:end].tolist():
            out[pair] = (weight[expert].double() @ x[pair // per_row].double()).to(x.dtype)
    return out


WITH_EXPERTS = SimpleNamespace(**vars(KERNELS["cpu"]) | {"expert_product": expert_product})
"""A CPU's kernels, and this one."""
