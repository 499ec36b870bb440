"""Modules of a Llama-like layer that run as fused kernels.

Owns their forward passes, the interface of the kernels, and which kernels a rank has. Not here: which of a model's
modules they stand for (fused_layers.py), the kernels (ops/cpu/layer_ops.py, ops/gpu/layer_kernels.py).
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.ops.attention.backend import AttentionParams, RotaryAngles
from medusa_dist.ops.attention.registry import TRITON
from medusa_dist.ops.cpu import layer_ops as cpu_kernels
from medusa_dist.ops.cpu.arrays import KERNEL_DTYPES
from medusa_dist.ops.gpu import layer_kernels as gpu_kernels
from medusa_dist.ops.gpu.expert_kernel import ExpertProduct, ExpertRoutes
from medusa_dist.ops.linear import Linear


class LayerKernels(Protocol):
    """The small operations between matrix products, each in one pass. Shapes as in ops/gpu/layer_kernels.py."""

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what rows of this dtype need."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, adds_one: bool) -> Tensor:
        """RMSNorm over the last dimension."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, adds_one: bool
    ) -> tuple[Tensor, Tensor]:
        """x + residual, and the RMSNorm of the sum."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, of both in one tensor."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""

    @property
    def expert_product(self) -> ExpertProduct | None:
        """Rows times the matrices of their experts (ops/gpu/expert_kernel.py); None: experts stay as they are."""


KERNELS: dict[str, LayerKernels] = {"cpu": cpu_kernels, TRITON: gpu_kernels}


def choose_kernels(attention_backend: str, device: torch.device, dtype: torch.dtype) -> LayerKernels | None:
    """The kernels of a rank: Triton's with its attention, compiled loops on a CPU; None: transformers' modules stay."""
    if attention_backend == TRITON:
        return KERNELS[TRITON]
    return KERNELS["cpu"] if device.type == "cpu" and dtype in KERNEL_DTYPES else None


class FusedRMSNorm(nn.Module):
    """RMSNorm in one kernel. adds_one: Gemma's form, x * (1 + weight) in float32; else Llama's."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float, adds_one: bool, kernels: LayerKernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps, self.adds_one, self._kernels = eps, adds_one, kernels

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> the same shape."""
        return self._kernels.rms_norm(x, self.weight, self.eps, self.adds_one)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """x + residual, and its norm."""
        return self._kernels.add_rms_norm(x, residual, self.weight, self.eps, self.adds_one)

    def in_torch(self, x: Tensor) -> Tensor:
        """The same in the operations of transformers' modules."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).to(x.dtype) if self.adds_one else self.weight * normed.to(x.dtype)


class FusedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) with one product before the kernel and one after it."""

    def __init__(self, inner: Any, kernels: LayerKernels) -> None:
        """Raises ValueError if gate and up do not go together."""
        super().__init__()
        joined = Linear.joined([inner.gate_proj, inner.up_proj])
        if joined is None:
            raise ValueError("gate and up are not alike")
        self.gate_up_proj, self.down_proj, self._kernels = joined, inner.down_proj, kernels

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> the same shape."""
        found: Tensor = self.down_proj(self._kernels.silu_mul(self.gate_up_proj(x)))
        return found

    @staticmethod
    def in_torch(inner: Any, x: Tensor) -> Tensor:
        """The same in the operations of transformers' modules."""
        found: Tensor = inner.down_proj(F.silu(inner.gate_proj(x)) * inner.up_proj(x))
        return found


class FusedExperts(nn.Module):
    """The experts of a mixture in three kernels, which ask nothing of the device: it can be captured."""

    gate_up_proj: Tensor
    down_proj: Tensor

    def __init__(self, inner: Any, kernels: LayerKernels) -> None:
        """inner: gate_up_proj [E, 2 I, H], gate before up, and down_proj [E, H, I]."""
        super().__init__()
        self.gate_up_proj, self.down_proj, self._kernels = inner.gate_up_proj, inner.down_proj, kernels

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x [T, H], experts [T, k] int64 and their weights [T, k] -> [T, H]."""
        product = self._kernels.expert_product
        assert product is not None
        routes = ExpertRoutes.of(experts, self.gate_up_proj.shape[0])
        middle = self._kernels.silu_mul(product(x, self.gate_up_proj, routes))
        made = product(middle, self.down_proj, routes).view(*experts.shape, x.shape[-1])
        return (made * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)

    def in_torch(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The same in the operations of transformers' modules, expert by expert."""
        out = torch.zeros_like(x)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            place, row = torch.where((experts == expert).T)
            if row.numel():
                gate, up = F.linear(x[row], gate_up).chunk(2, dim=-1)
                made = F.linear(F.silu(gate) * up, down) * weights[row, place, None]
                out.index_add_(0, row, made.to(out.dtype))
        return out


class FusedAttention(nn.Module):
    """Llama's attention, which leaves rotary embedding to the backend."""

    def __init__(self, inner: Any, params: AttentionParams, angles: "StepAngles") -> None:
        """params: what the module itself passes."""
        super().__init__()
        self.layer_idx, self.head_dim = inner.layer_idx, inner.head_dim
        self.projections, self.o_proj = nn.ModuleList([inner.q_proj, inner.k_proj, inner.v_proj]), inner.o_proj
        self._num_heads = [each.out_features // self.head_dim for each in self.projections]
        self.q_norm, self.k_norm = getattr(inner, "q_norm", None), getattr(inner, "k_norm", None)
        self._params, self._angles = params, angles

    def join(self) -> None:
        """Make the three products one, if they go together. It may round differently."""
        joined = Linear.joined([*self.projections])
        if joined is not None:
            self.projections = nn.ModuleList([joined])

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: None = None,
        **_options: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [1, T, H], position_embeddings [1, T, R] each -> ([1, T, H], None)."""
        assert cache is None and attention_mask is None, "the KV cache and the mask are ours"
        q, k, v = self._heads_of(hidden_states)
        q, k = (x if norm is None else norm(x) for x, norm in ((q, self.q_norm), (k, self.k_norm)))
        params = AttentionParams(
            *(self._params.scale, self._params.window, self._params.softcap, None),
            rotary=self._angles.of(position_embeddings),
        )
        out = attention_context.attend(self.layer_idx, q, k, v, params)
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None

    def _heads_of(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [T, heads, D]."""
        num_rows = hidden_states.shape[1]
        made = [project(hidden_states).view(num_rows, -1, self.head_dim) for project in self.projections]
        return made[0].split(self._num_heads, dim=1) if len(made) == 1 else tuple(made)


class StepAngles:
    """Rotary angles as the backend takes them, made once for all layers of a step."""

    def __init__(self) -> None:
        self._last: tuple[Any, RotaryAngles | None] = (None, None)

    def of(self, position_embeddings: tuple[Tensor, Tensor]) -> RotaryAngles:
        """position_embeddings: cos and sin [1, T, R], the same object in every layer of a step."""
        seen, angles = self._last
        if seen is not position_embeddings or angles is None:
            cos, sin = position_embeddings
            angles = RotaryAngles(cos.squeeze(0).contiguous(), sin.squeeze(0).contiguous())
            self._last = position_embeddings, angles
        return angles


class FusedDecoderLayer(nn.Module):
    """Llama's layer, whose first sum is fused with the norm after it."""

    def __init__(self, inner: Any, kernels: LayerKernels) -> None:
        super().__init__()
        for name, value in vars(inner).items():
            if not name.startswith("_"):
                setattr(self, name, value)  # some models ask their layers for their kind
        self.self_attn, self.mlp = inner.self_attn, inner.mlp
        self.input_layernorm, self.post_attention_layernorm = inner.input_layernorm, inner.post_attention_layernorm
        self._kernels = kernels

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """hidden_states [1, T, H] -> the same shape."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        norm = self.post_attention_layernorm
        if isinstance(norm, FusedRMSNorm):
            hidden_states, normed = norm.of_sum(attended, hidden_states)
        else:
            hidden_states = hidden_states + attended
            normed = norm(hidden_states)
        return self._kernels.add(hidden_states, self.mlp(normed))
