"""Replaces small modules of a loaded transformers model by fused kernels, where they are of a known form.

Owns the forms, and the proof that a module has one: it is run on random rows, and the form, in torch operations, has to
give the same bits. What gives others stays transformers' own, so a new architecture or version is slower, never wrong.
Not here: the kernels (ops/gpu/layer_kernels.py), rotary embedding and the KV cache (ops/attention/).
Called by all ranks together: modules that are tried sum over ranks.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.model.attention_bridge import attention_context, paged_attention
from medusa_dist.ops.attention.backend import AttentionParams, RotaryAngles
from medusa_dist.ops.gpu.layer_kernels import add_rms_norm, rms_norm, silu_mul

logger = logging.getLogger(__name__)

_ROWS = 5  # that are tried
_NOT_OF_A_FORM = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


class FusedRMSNorm(nn.Module):
    """RMSNorm in one kernel. adds_one: Gemma's form, x * (1 + weight) in float32; else Llama's."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float, adds_one: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps, self.adds_one = eps, adds_one

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> the same shape."""
        return rms_norm(x, self.weight, self.eps, self.adds_one)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """x + residual, and its norm."""
        return add_rms_norm(x, residual, self.weight, self.eps, self.adds_one)

    def in_torch(self, x: Tensor) -> Tensor:
        """The same in the operations of transformers' modules."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).to(x.dtype) if self.adds_one else self.weight * normed.to(x.dtype)


class FusedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) with one kernel between the products."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = inner.gate_proj, inner.up_proj, inner.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> the same shape."""
        found: Tensor = self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))
        return found

    def in_torch(self, x: Tensor) -> Tensor:
        """The same in the operations of transformers' modules."""
        found: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return found


class FusedAttention(nn.Module):
    """Llama's attention, which leaves rotary embedding to the backend. params: what the module itself passes."""

    def __init__(self, inner: Any, params: AttentionParams) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = inner.layer_idx, inner.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = inner.q_proj, inner.k_proj, inner.v_proj, inner.o_proj
        self.q_norm, self.k_norm = getattr(inner, "q_norm", None), getattr(inner, "k_norm", None)
        self._params = params

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [1, T, H], position_embeddings [1, T, R] each -> ([1, T, H], None)."""
        assert cache is None, "the KV cache is ours"
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (project(hidden_states).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (x if norm is None else norm(x) for x, norm in ((q, self.q_norm), (k, self.k_norm)))
        cos, sin = position_embeddings
        out, _ = paged_attention(
            self,
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attention_mask,
            scaling=self._params.scale,
            sliding_window=self._params.window,
            softcap=self._params.softcap,
            rotary=RotaryAngles(cos.squeeze(0), sin.squeeze(0)),
            **options,
        )
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


class FusedDecoderLayer(nn.Module):
    """Llama's layer, whose first sum is fused with the norm after it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        for name, value in vars(inner).items():
            if not name.startswith("_"):
                setattr(self, name, value)  # some models ask their layers for their kind
        self.self_attn, self.mlp = inner.self_attn, inner.mlp
        self.input_layernorm, self.post_attention_layernorm = inner.input_layernorm, inner.post_attention_layernorm

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """hidden_states [1, T, H] -> the same shape."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        norm = self.post_attention_layernorm
        if isinstance(norm, FusedRMSNorm):
            hidden_states, normed = norm.of_sum(attended, hidden_states)
        else:
            hidden_states = hidden_states + attended
            normed = norm(hidden_states)
        summed: Tensor = hidden_states + self.mlp(normed)
        return summed


@torch.inference_mode()
def fuse_layers(model: nn.Module, hidden_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Replace what has a known form; returns the number of modules replaced. The result runs where Triton does.

    Layers and attention are tried first, while their parts are still transformers' own.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 2).to(device=device, dtype=dtype)

    count = 0
    angles = tuple(f(rows(1, _ROWS, head_dim // 2).float()).repeat(1, 1, 2).to(dtype) for f in (torch.cos, torch.sin))
    for form in (
        lambda module: _layer(module, rows(1, _ROWS, hidden_size), angles),
        lambda module: _attention(module, rows(1, _ROWS, hidden_size), angles),
        lambda module: _mlp(module, rows(1, _ROWS, hidden_size)),
        lambda module: _norm(module, rows),
    ):
        count += _replace_all(model, form)
    logger.info("%d modules run as fused kernels", count)
    return count


def _replace_all(model: nn.Module, form: Callable[[Any], nn.Module | None]) -> int:
    """Replace every module for which form finds something."""
    count = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            try:
                found = form(module)
            except _NOT_OF_A_FORM as error:
                logger.debug("%s stays as it is: %r", type(module).__name__, error)
                continue
            if found is not None:
                setattr(parent, name, found)
                count += 1
    return count


def _norm(module: Any, rows: Callable[..., Tensor]) -> FusedRMSNorm | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    if len(list(module.parameters())) != 1 or isinstance(module, FusedRMSNorm):
        return None
    x = rows(_ROWS, weight.numel())
    for adds_one in (False, True):
        found = FusedRMSNorm(weight, eps, adds_one)
        if torch.equal(module(x), found.in_torch(x)):
            return found
    return None


def _mlp(module: Any, x: Tensor) -> FusedMLP | None:
    parts = {name for name, _ in module.named_children()}
    if not {"gate_proj", "up_proj", "down_proj"} <= parts <= {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None
    found = FusedMLP(module)
    return found if torch.equal(module(x), found.in_torch(x)) else None


def _attention(module: Any, x: Tensor, angles: tuple[Tensor, ...]) -> FusedAttention | None:
    parts = {name for name, _ in module.named_children()}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    if parts not in (projections, projections | {"q_norm", "k_norm"}):
        return None
    seen, out = _observed(module, x, angles)
    params = seen[0][4]
    if params.sinks is not None or len(seen) != 1:
        return None
    found = FusedAttention(module, params)
    again, out_again = _observed(found, x, angles)
    same = torch.equal(out, out_again) and seen[0][0] == again[0][0] and params == _without_rotary(again[0][4])
    rotated = again[0][4].rotated(again[0][1], again[0][2])
    same &= all(torch.equal(a, b) for a, b in zip(seen[0][1:4], (*rotated, again[0][3]), strict=True))
    return found if same else None


def _layer(module: Any, x: Tensor, angles: tuple[Tensor, ...]) -> FusedDecoderLayer | None:
    parts = {name for name, _ in module.named_children()}
    if parts != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return None
    found = FusedDecoderLayer(module)
    _, out = _observed(module, x, angles)
    _, again = _observed(found, x, angles)
    return found if torch.equal(out, again) else None


_Call = tuple[int, Tensor, Tensor, Tensor, AttentionParams]


def _observed(module: Any, x: Tensor, angles: tuple[Tensor, ...]) -> tuple[list[_Call], Tensor]:
    """Run a layer or its attention: the calls of attention, and the output. Attention takes each row's own value."""
    calls: list[_Call] = []

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        calls.append((layer, q, k, v, params))
        return v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

    with attention_context.using(observe):
        out = module(hidden_states=x, position_embeddings=angles, attention_mask=None)
    return calls, out[0] if isinstance(out, tuple) else out


def _without_rotary(params: AttentionParams) -> AttentionParams:
    return AttentionParams(params.scale, params.window, params.softcap, params.sinks)
