"""Replaces small modules of a loaded transformers model by fused ones, where they are of a known form.

Owns the proof that a module has a form: it is run on random rows, and the form, in torch operations, has to give the
same bits. What gives others stays transformers' own, so a new architecture or version is slower, never wrong.
Not here: the fused modules (fused_modules.py), rotary embedding and the KV cache (ops/attention/).
Called by all ranks together: modules that are tried sum over ranks.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.model.fused_modules import (
    FusedAttention,
    FusedDecoderLayer,
    FusedExperts,
    FusedMLP,
    FusedRMSNorm,
    LayerKernels,
    StepAngles,
)
from medusa_dist.ops.attention.backend import AttentionParams

logger = logging.getLogger(__name__)

_ROWS = 5  # that are tried
_NOT_OF_A_FORM = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


class LayerFuser:
    """Replaces what has a known form, part by part of a model."""

    def __init__(
        self, kernels: LayerKernels, hidden_size: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        kernels.warm_up(dtype)
        self._generator = torch.Generator().manual_seed(0)
        self._dtype, self._device = dtype, device
        x, half = self._rows(1, _ROWS, hidden_size), self._rows(1, _ROWS, head_dim // 2).float()
        angles = tuple(f(half).repeat(1, 1, 2).to(dtype) for f in (torch.cos, torch.sin))
        step_angles = StepAngles()
        # Layers and attention are tried first, while their parts are still transformers' own.
        self._forms: tuple[Callable[[Any], nn.Module | None], ...] = (
            lambda module: _layer(module, x, angles, kernels),
            lambda module: _attention(module, x, angles, step_angles),
            lambda module: _mlp(module, x, kernels),
            lambda module: _experts(module, self._rows, kernels),
            lambda module: _norm(module, self._rows, kernels),
        )
        self._tried: set[nn.Module] = set()

    def _rows(self, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=self._generator) * 2).to(device=self._device, dtype=self._dtype)

    @torch.inference_mode()
    def fuse(self, part: nn.Module) -> nn.Module:
        """What stands for the part, with all in it that has a form replaced. Parts of it may have been fused before."""
        holder = nn.ModuleDict({"part": part})
        count = sum(self._replace_all(holder, form) for form in self._forms)
        self._tried.update(holder.modules())
        logger.debug("%d modules of a part run as fused kernels", count)
        return holder["part"]

    def _replace_all(self, parent: nn.Module, form: Callable[[Any], nn.Module | None]) -> int:
        """Replace every module in the parent for which form finds something."""
        count = 0
        for name, module in list(parent.named_children()):
            if module in self._tried:
                continue
            found = _of_form(module, form)
            if found is not None:
                setattr(parent, name, found)
            count += (found is not None) + self._replace_all(found or module, form)
        return count


def _of_form(module: nn.Module, form: Callable[[Any], nn.Module | None]) -> nn.Module | None:
    try:
        return form(module)
    except _NOT_OF_A_FORM as error:
        logger.debug("%s stays as it is: %r", type(module).__name__, error)
        return None


def _norm(module: Any, rows: Callable[..., Tensor], kernels: LayerKernels) -> FusedRMSNorm | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    if len(list(module.parameters())) != 1 or isinstance(module, FusedRMSNorm):
        return None
    x = rows(_ROWS, weight.numel())
    for adds_one in (False, True):
        found = FusedRMSNorm(weight, eps, adds_one, kernels)
        if torch.equal(module(x), found.in_torch(x)):
            return found
    return None


def _mlp(module: Any, x: Tensor, kernels: LayerKernels) -> FusedMLP | None:
    parts = {name for name, _ in module.named_children()}
    if not {"gate_proj", "up_proj", "down_proj"} <= parts <= {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None
    return FusedMLP(module, kernels) if torch.equal(module(x), FusedMLP.in_torch(module, x)) else None


def _experts(module: Any, rows: Callable[..., Tensor], kernels: LayerKernels) -> FusedExperts | None:
    if {name for name, _ in module.named_parameters()} != {"gate_up_proj", "down_proj"}:
        return None
    if kernels.expert_product is None or module.gate_up_proj.dim() != 3:
        return None
    found = FusedExperts(module, kernels)
    num_experts, _, width = module.gate_up_proj.shape
    x, num_chosen = rows(_ROWS, width), min(2, num_experts)
    chosen = rows(_ROWS, num_experts).topk(num_chosen).indices
    weights = rows(_ROWS, num_chosen).float().softmax(dim=-1)
    # transformers may put another implementation before the module's own loop, which rounds differently.
    loop = getattr(type(module).forward, "__wrapped__", type(module).forward)
    return found if torch.equal(loop(module, x, chosen, weights), found.in_torch(x, chosen, weights)) else None


def _attention(module: Any, x: Tensor, angles: tuple[Tensor, ...], step_angles: StepAngles) -> FusedAttention | None:
    parts = {name for name, _ in module.named_children()}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    if parts not in (projections, projections | {"q_norm", "k_norm"}):
        return None
    seen, out = _observed(module, x, angles)
    params = seen[0][4]
    if params.sinks is not None or len(seen) != 1:
        return None
    found = FusedAttention(module, params, step_angles)
    again, out_again = _observed(found, x, angles)
    same = torch.equal(out, out_again) and seen[0][0] == again[0][0] and params == _without_rotary(again[0][4])
    rotated = again[0][4].rotated(again[0][1], again[0][2])
    same &= all(torch.equal(a, b) for a, b in zip(seen[0][1:4], (*rotated, again[0][3]), strict=True))
    if not same:
        return None
    found.join()
    return found


def _layer(module: Any, x: Tensor, angles: tuple[Tensor, ...], kernels: LayerKernels) -> FusedDecoderLayer | None:
    parts = {name for name, _ in module.named_children()}
    if parts != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return None
    found = FusedDecoderLayer(module, kernels)
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
