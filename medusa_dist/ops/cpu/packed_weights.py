"""Weights of linear layers in layouts that CPUs multiply fast: oneDNN's blocks of the model's dtype, 8-bit integers.

Owns the layouts, their products, and whether this CPU and this torch have them. Not here: the layers that use them
(ops/linear.py), the rounding of rows to 8 bits (int8_kernel.py).
Shapes: T rows, I inputs, O outputs. The operators are private to PyTorch, so each is tried before it is used.
"""

import functools
import logging
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.ops.cpu.int8_rows import INT8_MAX, ZERO, compile_int8, join_rows, split_rows

logger = logging.getLogger(__name__)

INT8 = "int8"
_FEWEST_ROWS = 4  # of a product: one or two may be multiplied in another order
_TRIED_ROWS = (33, 40, 48, 64, 65, 100, 128, 160)
_ROWS_PACKED_FOR = 8  # only a hint for the blocking; results do not depend on it


class WeightForm(Protocol):
    """A weight [O, I] in some layout. nbytes: what it takes."""

    nbytes: int

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., I] -> [..., O] in x's dtype, plus the bias."""


class PackedWeight:
    """A weight [O, I] in oneDNN's own blocked layout, and the linear product that uses it. CPU, float32 or bfloat16.

    Faster than `F.linear` for few rows (MKL is slow for skinny matrix products), and a row's result does not depend on
    how many other rows are computed with it: fewer than 4 are padded, and no more are multiplied at once than
    `rows_at_once` says.
    """

    def __init__(self, packed: Tensor, nbytes: int) -> None:
        self.packed, self.nbytes = packed, nbytes

    @staticmethod
    def pack(weight: Tensor) -> "PackedWeight | None":
        """The packed copy, or None where this build, device or dtype does not support it; the reason is logged once."""
        refusal = packing_refusal(weight.device, weight.dtype)
        if refusal is not None:
            if weight.device.type == "cpu":
                _log_refusal(refusal)
            return None
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_PACKED_FOR)
        return PackedWeight(packed, weight.nbytes)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., I] -> [..., O]; the bias is added in the same operator."""
        rows, limit = x.reshape(-1, x.shape[-1]), rows_at_once(x.dtype)
        if 0 < (missing := _FEWEST_ROWS - rows.shape[0]) < _FEWEST_ROWS:
            y = _packed_product(F.pad(rows, (0, 0, 0, missing)), self.packed, bias)
            return y[: rows.shape[0]].view(*x.shape[:-1], y.shape[1])
        if limit is None or rows.shape[0] <= limit:
            return _packed_product(x, self.packed, bias)
        # Parts of about the same size, since the last one should not have too few rows.
        parts = rows.tensor_split(-(-rows.shape[0] // limit))
        y = torch.cat([_packed_product(part, self.packed, bias) for part in parts])
        return y.view(*x.shape[:-1], y.shape[1])


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


@functools.cache
def rows_at_once(dtype: torch.dtype) -> int | None:
    """How many rows one packed product may have so that a row's bits do not depend on their number; None: any number.

    Found by trying, once for each dtype. With AMX, oneDNN has one order of additions up to 32 rows and others above.
    """
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(size, 576, generator=generator).to(dtype) for size in (1088, _TRIED_ROWS[-1]))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_PACKED_FOR)
    few = torch.cat([_packed_product(part, packed, None) for part in rows.tensor_split(len(rows) // 8)])

    def agrees(count: int) -> bool:
        return torch.equal(_packed_product(rows[:count], packed, None), few[:count])

    limits = [limit for limit in (32, 16) if all(map(agrees, range(2, limit + 1)))]
    if limits[:1] == [32] and all(map(agrees, _TRIED_ROWS)):
        return None
    return limits[0] if limits else 8


class Int8Weight:
    """A weight [O, I] as 8-bit integers with a scale per output, multiplied by rows of two 8-bit digits.

    Sums of integers are exact in any order, so a row's result is bitwise the same whatever else is in the batch.
    """

    def __init__(self, weight: Tensor) -> None:
        """weight [O, I] in float32 or bfloat16. Raises RuntimeError where int8_refusal() has a reason."""
        compile_int8(weight.dtype)
        values, self._scales = quantize_weight(weight.detach())
        self._zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)
        self.nbytes = int8_bytes(weight)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., I] -> [..., O] in x's dtype; sums are in 32 bits, scales and the bias in float32."""
        digits, scales = split_rows(x.reshape(-1, x.shape[-1]))
        sums = _int8_product(digits, self._packed, self._scales, self._zeros)
        return join_rows(sums, scales, bias, x.dtype).view(*x.shape[:-1], sums.shape[1])


def int8_bytes(weight: Tensor | None) -> int:
    """What a weight [O, I] takes as Int8Weight: a byte per element, and a float32 scale per output."""
    return 0 if weight is None else weight.numel() + 4 * weight.shape[0]


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [O, I] -> int8 [O, I] and scales [O] float32: the largest magnitude of an output becomes 127."""
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / INT8_MAX
    return (wide / scales.clamp_min(1e-30)[:, None]).round().to(torch.int8), scales


def _int8_product(values: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """values [T, I] uint8 about ZERO, since oneDNN is slow for signed rows -> [T, O] float32, scaled by output."""
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(values, 1.0, ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    )
    return y


@functools.cache
def packing_refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why weights of this kind cannot be prepacked; None if they can. Tries it once against F.linear."""
    if device.type != "cpu":
        return f"{device.type} does not use it"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"{dtype} is not supported"
    x, weight = torch.linspace(-1, 1, 64).view(2, 32).to(dtype), torch.linspace(-1, 1, 480).view(15, 32).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_PACKED_FOR)
        y = _packed_product(x, packed, None)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        return str(error).splitlines()[0]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return None if torch.allclose(y, F.linear(x, weight), atol=tolerance, rtol=tolerance) else "its results are wrong"


@functools.cache
def int8_refusal() -> str | None:
    """Why this CPU or this torch does not multiply 8-bit integers exactly; None if they do.

    Tried on the largest values: CPUs without VNNI add pairs of products in 16 bits, which overflow.
    """
    rows = torch.full((3, 96), INT8_MAX, dtype=torch.int32)
    rows[1] = -rows[1]
    rows[2, ::2] = 1
    weight = torch.full((33, 96), INT8_MAX, dtype=torch.int8)
    weight[1::2] = -weight[1::2]
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        y = _int8_product((rows + ZERO).to(torch.uint8), packed, torch.ones(33), torch.zeros(33, dtype=torch.int64))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        return str(error).splitlines()[0]
    exact = torch.equal(y.double(), rows.double() @ weight.double().t())
    return None if exact else "sums of 8-bit products overflow on this CPU (it lacks VNNI)"


@functools.cache
def _log_refusal(reason: str) -> None:
    logger.warning("linear layers are not prepacked, which makes a CPU slower: %s", reason)
