"""Which modules are replaced by kernels, and that the model says the same; modules of other forms stay."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from medusa_dist.model import fused_layers
from medusa_dist.model.fused_layers import LayerFuser
from medusa_dist.model.fused_modules import KERNELS, FusedAttention, FusedDecoderLayer, FusedMLP, FusedRMSNorm
from tests.support.attention_cases import needs_triton
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
}


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
