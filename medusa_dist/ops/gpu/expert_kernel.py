"""Kernel of a mixture's experts: rows times the matrices of the experts that they are routed to, in one launch.

Owns the product, and how (row, expert) pairs are cut into tiles, which asks nothing of the device and has shapes that
depend on the number of rows alone: both can be captured. Not here: the router, and what is done with the products
(model/fused_modules.py).
A tile is up to M pairs of one expert. There are as many tiles as the worst routing needs; those left over have no
pairs, and their programs end at once.
Shapes: T rows, k experts of each, S = T k pairs, E experts, I and O columns in and out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_dist.ops.gpu.language import jit, tl
from medusa_dist.ops.gpu.launch import KernelLaunch

_COLUMNS = 64  # of the output, per program
_FEW_PAIRS, _MANY_PAIRS = 16, 64  # of a tile; 16 is the least that tensor cores take


@dataclass(frozen=True)
class ExpertRoutes:
    """Pairs by expert. order [S] int64: pair numbers (row * k + place), sorted by expert. tiles [N, 3] int32: expert,
    and the half-open range of `order` that it has. tile_pairs: M, the most pairs of a tile."""

    order: Tensor
    tiles: Tensor
    tile_pairs: int

    @classmethod
    def of(cls, experts: Tensor, num_experts: int) -> "ExpertRoutes":
        """experts: [T, k] int64, each below num_experts."""
        pairs = experts.reshape(-1)
        size = _MANY_PAIRS if pairs.numel() > _FEW_PAIRS * num_experts else _FEW_PAIRS
        numbers = torch.arange(num_experts, device=pairs.device)
        order = torch.argsort(pairs, stable=True)
        counts = (pairs[:, None] == numbers).sum(dim=0)
        num_tiles = (counts + (size - 1)) // size
        ends = torch.cumsum(num_tiles, dim=0)
        # An expert's last tile is the only one that is not full.
        most = pairs.numel() // size + min(num_experts, pairs.numel())
        tile = torch.arange(most, device=pairs.device)
        expert = torch.searchsorted(ends, tile, right=True)
        is_used = expert < num_experts
        expert = expert.clamp(max=num_experts - 1)
        first = torch.cumsum(counts, dim=0) - counts
        begin = first[expert] + (tile - (ends - num_tiles)[expert]) * size
        end = torch.minimum(begin + size, first[expert] + counts[expert])
        tiles = torch.stack([expert, torch.where(is_used, begin, 0), torch.where(is_used, end, 0)], dim=1)
        return cls(order, tiles.to(torch.int32), size)


ExpertProduct = Callable[[Tensor, Tensor, ExpertRoutes], Tensor]


# fmt: off
@jit
def multiply_tiles(
    x, weight, out, order, tiles, x_stride, num_in, num_out,
    PER_ROW: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Tile program_id(1), part program_id(0) of TILE_N columns: out[pair] = x[pair // PER_ROW] times the expert's."""
    tile = tiles + tl.program_id(1) * 3
    begin, end = tl.load(tile + 1), tl.load(tile + 2)
    if begin < end:
        expert = tl.load(tile).to(tl.int64)
        place = begin + tl.arange(0, TILE_M)
        real = place < end
        pair = tl.load(order + place, mask=real, other=0)
        column = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
        inside = column < num_out
        rows = x + (pair // PER_ROW) * x_stride
        columns = weight + (expert * num_out + column) * num_in
        total = tl.zeros([TILE_M, TILE_N], tl.float32)
        for start in range(0, num_in, TILE_K):
            k = start + tl.arange(0, TILE_K)
            left = tl.load(rows[:, None] + k[None, :], mask=real[:, None] & (k < num_in)[None, :], other=0.0)
            right = tl.load(columns[None, :] + k[:, None], mask=inside[None, :] & (k < num_in)[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
        at = out + pair[:, None] * num_out + column[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


def expert_product(x: Tensor, weight: Tensor, routes: ExpertRoutes) -> Tensor:
    """x: [T, I] of rows or [S, I] of pairs; weight: [E, O, I], contiguous -> [S, O], a row for each pair, in their own
    order."""
    num_pairs, (_, num_out, num_in) = routes.order.numel(), weight.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(num_pairs, num_out)
    KernelLaunch(
        multiply_tiles,
        (-(-num_out // _COLUMNS), routes.tiles.shape[0]),
        {
            **{"x": x, "weight": weight, "out": out, "order": routes.order, "tiles": routes.tiles},
            **{"x_stride": x.stride(0), "num_in": num_in, "num_out": num_out},
        },
        {
            **{"PER_ROW": num_pairs // max(1, x.shape[0]), "TILE_M": routes.tile_pairs, "TILE_N": _COLUMNS},
            **{"TILE_K": 32 if x.dtype == torch.float32 else 64, "PRECISION": "ieee"},
        },
    ).run()
    return out
