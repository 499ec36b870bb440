"""Kernels of the small operations between matrix products: RMSNorm, with the sum before it, and SiLU times up.

Owns the arithmetic and the launches. Not here: which modules of a model they stand for (model/fused_layers.py), the
same in torch, which is transformers' own code.
They compute in float32 and round where transformers' modules round, so that only the order of RMSNorm's sum differs.
Shapes: T rows, H hidden size, I intermediate size.
"""

import torch
from torch import Tensor

from medusa_dist.ops.gpu import expert_kernel
from medusa_dist.ops.gpu.language import jit, padded, tl
from medusa_dist.ops.gpu.launch import KernelLaunch

_COLUMNS = 1024  # of one program of SiLU times up

expert_product: expert_kernel.ExpertProduct | None = expert_kernel.expert_product


# fmt: off
@jit
def add_and_normalise(
    x, residual, weight, out, summed, eps, x_stride, residual_stride,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ADDS: tl.constexpr, ADDS_ONE: tl.constexpr,
):
    # fmt: on
    """Row program_id(0): summed = x + residual where ADDS, out = RMSNorm of it.

    ADDS_ONE: the scale is 1 + weight and is applied before rounding (Gemma); else weight, after it (Llama).
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside = column < WIDTH
    own = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    if ADDS:
        other = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0)
        own = (own.to(tl.float32) + other.to(tl.float32)).to(own.dtype)
        tl.store(summed + row * WIDTH + column, own, mask=inside)
    wide = own.to(tl.float32)
    # The mean as a product with 1 / WIDTH would round differently where WIDTH is no power of two.
    mean = tl.math.div_rn(tl.sum(wide * wide, axis=0), WIDTH * 1.0)
    normed = wide * tl.rsqrt(mean + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS_ONE:
        normed = normed * (1.0 + scale)
    else:
        normed = normed.to(own.dtype).to(tl.float32) * scale
    tl.store(out + row * WIDTH + column, normed.to(own.dtype), mask=inside)


@jit(do_not_specialize=["gate_stride", "up_stride"])
def silu_times_up(gate, up, out, gate_stride, up_stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Row program_id(0), part program_id(1) of COLUMNS columns: silu(gate) * up."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    own = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    x = own.to(tl.float32)
    activated = tl.math.div_rn(x, 1.0 + tl.exp(-x)).to(own.dtype).to(tl.float32)
    other = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (activated * other).to(own.dtype), mask=inside)


def warm_up(dtype: torch.dtype) -> None:
    """Nothing: Triton compiles in the first launches, which measure memory and step times."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, adds_one: bool) -> Tensor:
    """RMSNorm over the last dimension of x [..., H]."""
    rows = _rows(x)
    out = torch.empty_like(rows)
    _normalise(rows, None, weight, eps, adds_one, (out, out))
    return out.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, adds_one: bool) -> tuple[Tensor, Tensor]:
    """x + residual, both [..., H], and the RMSNorm of the sum."""
    rows = _rows(x)
    out, summed = torch.empty_like(rows), torch.empty_like(rows)
    _normalise(rows, _rows(residual), weight, eps, adds_one, (out, summed))
    return summed.view(x.shape), out.view(x.shape)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, one kernel of torch's."""
    return x + y


def _normalise(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, adds_one: bool, outputs: tuple[Tensor, Tensor]
) -> None:
    num_rows, width = x.shape
    other = x if residual is None else residual  # not read without a residual
    KernelLaunch(
        add_and_normalise,
        (num_rows,),
        {
            **{"x": x, "residual": other, "weight": weight, "out": outputs[0], "summed": outputs[1]},
            **{"eps": eps, "x_stride": x.stride(0), "residual_stride": other.stride(0)},
        },
        {"WIDTH": width, "PADDED": padded(width), "ADDS": residual is not None, "ADDS_ONE": adds_one},
        num_warps=8 if width > 2048 else 4,
    ).run()


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 I], gate before up -> [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    left, right = _rows(gate), _rows(up)
    num_rows, width = left.shape
    out = left.new_empty(left.shape)
    KernelLaunch(
        silu_times_up,
        (num_rows, -(-width // _COLUMNS)),
        {"gate": left, "up": right, "out": out, "gate_stride": left.stride(0), "up_stride": right.stride(0)},
        {"WIDTH": width, "COLUMNS": _COLUMNS},
    ).run()
    return out.view(gate.shape)


def _rows(x: Tensor) -> Tensor:
    """[..., H] as [T, H] with neighbouring elements in a row."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()
