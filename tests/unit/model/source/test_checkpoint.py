from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from medusa_dist.errors import ModelError
from medusa_dist.model.source.checkpoint import Checkpoint, Cut, StoredTensor, map_parameters
from tests.support.tiny_models import configs, save_tiny

A, B = torch.randn(7, 5), torch.randn(7, 5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_file({"a": A, "b": B, "bias": A[:, 0].contiguous()}, tmp_path / "model.safetensors")
    return Checkpoint(tmp_path)


CUTS = [
    Cut(0, ((0, 7),)),
    Cut(0, ((2, 5),)),
    Cut(0, ((0, 1), (4, 7))),
    Cut(0, ((5, 7),), pad=3),
    Cut(0, ((7, 7),), pad=2),
    Cut(1, ((1, 3),)),
    Cut(1, ((0, 1), (3, 5))),
]


@pytest.mark.parametrize("cut", CUTS)
def test_slice_read_equals_cutting_the_whole_tensor(checkpoint: Checkpoint, cut: Cut) -> None:
    part = checkpoint.read(StoredTensor((("a",),)), cut, torch.float32)
    assert torch.equal(part, cut.apply(A)) and part.shape[cut.dim] == cut.size
    assert torch.equal(Checkpoint(checkpoint.folder).read(StoredTensor((("a",),)), cut, torch.float32, lend=True), part)
    assert checkpoint.bytes_read == 4 * (A.numel() // A.shape[cut.dim]) * (cut.size - cut.pad)


@pytest.mark.parametrize("cut", [Cut(1, ((2, 9), (11, 14))), Cut(1, ((0, 14),)), None])
def test_stacked_and_joined_tensors_are_read_as_one(checkpoint: Checkpoint, cut: Cut | None) -> None:
    stored = StoredTensor((("a", "b"), ("b", "a")), stacked=True)
    whole = torch.stack([torch.cat([A, B]), torch.cat([B, A])])
    expected = whole if cut is None else cut.apply(whole)
    assert torch.equal(checkpoint.read(stored, cut, torch.float32), expected)


def test_read_converts_to_the_requested_dtype(checkpoint: Checkpoint) -> None:
    part = checkpoint.read(StoredTensor((("bias",),)), Cut(0, ((1, 4),)), torch.bfloat16)
    assert torch.equal(part, A[1:4, 0].bfloat16())


def test_mixture_weights_are_mapped_expert_by_expert(tmp_path: Path) -> None:
    model = save_tiny("mixtral", tmp_path)
    stored = map_parameters(model, Checkpoint(tmp_path))["model.layers.1.mlp.experts.gate_up_proj"]
    assert stored.stacked and len(stored.stacks) == 4
    assert [name.split(".")[-2] for name in stored.stacks[3]] == ["w1", "w3"]
    whole = Checkpoint(tmp_path).read(stored, None, torch.float32)
    assert torch.equal(whole, model.model.layers[1].mlp.experts.gate_up_proj)


def test_names_without_the_base_models_prefix_are_mapped(tmp_path: Path) -> None:
    """GPT-2's published file says `h.0...`, the model `transformer.h.0...`."""
    model = AutoModelForCausalLM.from_config(configs()["gpt2"])
    save_file(model.transformer.state_dict(), tmp_path / "model.safetensors")
    mapped = map_parameters(model, Checkpoint(tmp_path))
    assert mapped["transformer.h.1.attn.c_attn.weight"].stacks == (("h.1.attn.c_attn.weight",),)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has neither model\.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, and only safetensors.*save_pretrained"):
        Checkpoint(tmp_path)


def test_a_broken_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="weight_map"):
        Checkpoint(tmp_path)
