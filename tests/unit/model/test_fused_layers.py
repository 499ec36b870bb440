"""Which modules are replaced by kernels, and that the model says the same; modules of other forms stay."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from medusa_dist.model import fused_layers
from medusa_dist.model.fused_layers import LayerFuser
from medusa_dist.model.fused_modules import (
    KERNELS,
    FusedAttention,
    FusedDecoderLayer,
    FusedExperts,
    FusedMLP,
    FusedRMSNorm,
    LayerKernels,
)
from medusa_dist.model.sharding_plans import HeadShape, Style, cut_of
from medusa_dist.ops.tp_group import TPGroup
from tests.support.attention_cases import needs_triton
from tests.support.expert_twin import WITH_EXPERTS
from tests.support.loaded_models import load, run
from tests.support.tiny_models import configs, save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
every_kernels = pytest.mark.parametrize("kernels", ["cpu", pytest.param("triton", marks=needs_triton)])
# layers, attention, MLPs, norms
FOUND = {
    "llama": (2, 2, 2, 5),
    "llama-tied": (2, 2, 2, 5),
    "mistral": (2, 2, 2, 5),
    "qwen3": (2, 2, 2, 9),
    "gemma2": (0, 2, 0, 9),  # four norms per layer, and another activation
    "phi3": (0, 0, 0, 5),  # fused projections
    "gpt2": (0, 0, 0, 0),
    "qwen2-moe": (2, 2, 2, 5),  # the shared experts are MLPs
    "mixtral": (2, 2, 0, 5),
}
ROUTED = ["qwen2-moe", "mixtral"]


@every_kernels
@pytest.mark.parametrize("name", FOUND)
def test_fused_model_equals_the_model(name: str, kernels: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    plain, fused = load(tmp_path), load(tmp_path, kernels=KERNELS[kernels])
    kinds = (FusedDecoderLayer, FusedAttention, FusedMLP, FusedRMSNorm)
    found = tuple(sum(isinstance(m, kind) for m in fused.module.modules()) for kind in kinds)
    assert found == FOUND[name]
    for got, expected in zip(run(fused), run(plain), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert fused.weight_bytes() == plain.weight_bytes()
    num_experts = sum(isinstance(module, FusedExperts) for module in fused.module.modules())
    assert num_experts == (2 if name in ROUTED and kernels == "triton" else 0)


EXPERTS = {
    MixtralExperts: MixtralConfig(num_local_experts=4),
    Qwen2MoeExperts: Qwen2MoeConfig(num_experts=4),
    Qwen3MoeExperts: Qwen3MoeConfig(num_experts=4),
    OlmoeExperts: OlmoeConfig(num_experts=4),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_fused_experts_equal_the_loop(kind: type[nn.Module]) -> None:
    """One row, more rows than experts, and all rows routed alike. Unless the kernels have such a product, they stay."""
    module = experts_of(kind)
    fused = fuser(WITH_EXPERTS).fuse(module)
    assert type(fused) is FusedExperts and type(fuser(KERNELS["cpu"]).fuse(module)) is kind
    for num_rows, is_alike in ((1, False), (23, False), (23, True)):
        x, chosen = torch.randn(num_rows, 72), torch.rand(num_rows, 4).topk(2).indices
        chosen = chosen[:1].expand(num_rows, 2) if is_alike else chosen
        weights = torch.rand(num_rows, 2)
        torch.testing.assert_close(fused(x, chosen, weights), module(x, chosen, weights), atol=1e-5, rtol=1e-5)


def test_the_parts_of_two_ranks_sum_to_the_whole() -> None:
    module = experts_of(MixtralExperts)
    whole = fuser(WITH_EXPERTS).fuse(module)
    x, chosen, weights = torch.randn(9, 72), torch.rand(9, 4).topk(2).indices, torch.rand(9, 2)
    parts = []
    for rank in range(2):
        part = copy.deepcopy(module)
        for name, style in (("gate_up_proj", Style.EXPERTS_GATE_UP), ("down_proj", Style.EXPERTS_DOWN)):
            weight = getattr(module, name)
            cut = cut_of(style, tuple(weight.shape), HeadShape.of(MixtralConfig(), TPGroup()), TPGroup(rank, 2))
            own = torch.cat([weight.narrow(cut.dim, start, stop - start) for start, stop in cut.ranges], cut.dim)
            setattr(part, name, nn.Parameter(own, requires_grad=False))
        fused = fuser(WITH_EXPERTS).fuse(part)
        assert type(fused) is FusedExperts
        parts.append(fused(x, chosen, weights))
    torch.testing.assert_close(parts[0] + parts[1], whole(x, chosen, weights), atol=1e-5, rtol=1e-5)


def experts_of(kind: type[nn.Module], **fields: object) -> nn.Module:
    config = copy.deepcopy(EXPERTS[kind])
    config.update({"hidden_size": 72, "intermediate_size": 64, "moe_intermediate_size": 64} | fields)
    config._experts_implementation = "eager"
    module = kind(config).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.1)
    return module


def fuser(kernels: LayerKernels) -> LayerFuser:
    return LayerFuser(kernels, 72, 8, torch.float32, torch.device("cpu"))


class _ShiftedExperts(MixtralExperts):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return super().forward(hidden_states, top_k_index, top_k_weights) + 1


def test_experts_of_another_form_stay() -> None:
    """Another activation, and another sum."""
    for module in (experts_of(MixtralExperts, hidden_act="gelu"), shifted()):
        assert fuser(WITH_EXPERTS).fuse(module) is module


def shifted() -> nn.Module:
    module = experts_of(MixtralExperts)
    module.__class__ = _ShiftedExperts
    return module


class _ScaledNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) * 1.0009765625


class _SquaredMLP(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) ** 2)


@every_kernels
def test_modules_of_another_form_stay(kernels: str) -> None:
    config = configs()["llama"]
    holder = nn.Module()
    for name, module in (("norm", _ScaledNorm(72)), ("mlp", _SquaredMLP(config)), ("layer_norm", nn.LayerNorm(72))):
        setattr(holder, name, module)
    config.hidden_act = "gelu"
    holder.gelu = LlamaMLP(config)
    holder.known = LlamaRMSNorm(72)
    LayerFuser(KERNELS[kernels], 72, 8, torch.float32, torch.device("cpu")).fuse(holder)
    assert [type(m) for m in holder.children()] == [_ScaledNorm, _SquaredMLP, nn.LayerNorm, LlamaMLP, FusedRMSNorm]


def test_attention_with_another_rotation_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of transformers may rotate in another way; then its own attention runs."""
    modeling = "transformers.models.llama.modeling_llama.apply_rotary_pos_emb"
    monkeypatch.setattr(modeling, lambda q, k, cos, sin: (q * cos - q * sin, k * cos + k * sin))
    save_tiny("llama", tmp_path)
    fused = load(tmp_path, kernels=KERNELS["cpu"])
    assert not any(isinstance(m, FusedAttention) for m in fused.module.modules())
    assert sum(isinstance(m, FusedMLP) for m in fused.module.modules()) == 2


def test_rows_that_are_tried_tell_the_two_forms_of_norms_apart() -> None:
    norm = LlamaRMSNorm(72)
    norm.weight.data.normal_()
    found = fused_layers._norm(norm, lambda *shape: torch.randn(shape) * 2, KERNELS["cpu"])
    assert found is not None and not found.adds_one
