"""Folders of heads in every form that is served, read as they are: without a conversion, from .safetensors only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.published.reader import described_any_heads, read_any_heads
from tests.support.tiny_eagle3 import FORMS, checkpoint, save_as, save_checkpoint
from tests.support.tiny_heads import HIDDEN, VOCAB, random_heads

BASE = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB)


def medusa(own: bool) -> dict[str, torch.Tensor]:
    """Three heads of two blocks under the names of Medusa v0.1 and v1, or, without output rows, of TGI v2."""
    torch.manual_seed(2)
    tensors = {}
    for head in range(3):
        for block in range(2):
            tensors[f"{head}.{block}.linear.weight"] = torch.randn(HIDDEN, HIDDEN)
            tensors[f"{head}.{block}.linear.bias"] = torch.randn(HIDDEN)
        if own:
            tensors[f"{head}.2.weight"] = torch.randn(VOCAB, HIDDEN)
    return tensors


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "model.safetensors"])
@pytest.mark.parametrize("shapes_only", [False, True])
def test_medusa_heads_are_read_without_a_conversion(
    tmp_path: Path, own: bool, prefix: str, name: str, shapes_only: bool
) -> None:
    tensors = medusa(own)
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 3, "medusa_num_layers": 2}))
    file = read_any_heads(tmp_path, BASE, shapes_only)
    assert isinstance(file, HeadsFile)
    about = file.description
    assert (about.form, about.num_heads, about.num_blocks) == ("hidden", 3, 2)
    assert about.lm_head == ("own" if own else "shared") and about.base == BASE
    block = file.tensors["heads.1.blocks.1.weight"]
    assert block.is_meta if shapes_only else torch.equal(block, tensors["1.1.linear.weight"])


def test_heads_beside_a_whole_model_are_the_ones_that_are_read(tmp_path: Path) -> None:
    save_file(medusa(True), tmp_path / "medusa_lm_head.safetensors")
    save_file({"model.embed_tokens.weight": torch.zeros(3, 3)}, tmp_path / "model-00001-of-00001.safetensors")
    assert isinstance(read_any_heads(tmp_path, BASE), HeadsFile)


def test_our_own_head_files_are_read_as_ever(tmp_path: Path) -> None:
    random_heads(num_heads=2).save(tmp_path)
    file = read_any_heads(tmp_path, BASE)
    assert isinstance(file, HeadsFile) and file.num_levels == 2 and file.num_known == VOCAB and file.made_for == "tiny"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes_only", [False, True])
def test_eagle3_heads_are_read_without_a_conversion(tmp_path: Path, form: str, shapes_only: bool) -> None:
    tensors = save_checkpoint(tmp_path, form)
    file = read_any_heads(tmp_path, BASE, shapes_only)
    assert isinstance(file, Eagle3File) and file.draft_vocab is not None
    assert torch.equal(file.draft_vocab, tensors["d2t"] + torch.arange(len(tensors["d2t"])))
    assert (
        file.tensors["fc.weight"].is_meta
        if shapes_only
        else torch.equal(file.tensors["fc.weight"], tensors["fc.weight"])
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_config_alone_describes_eagle3_heads_completely(tmp_path: Path, form: str) -> None:
    config, tensors = checkpoint(form)
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = described_any_heads(tmp_path)
    assert isinstance(file, Eagle3File) and file.draft_vocab is None
    assert sum(t.numel() for t in file.tensors.values()) == sum(
        t.numel() for name, t in tensors.items() if name not in ("d2t", "t2d") and not name.endswith(".bias")
    )


def test_a_config_alone_does_not_describe_medusa_heads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 3, "medusa_num_layers": 1}))
    assert described_any_heads(tmp_path) is None


def test_files_that_cannot_be_served_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"has no \.safetensors file: heads are a folder with heads\.json"):
        read_any_heads(tmp_path, BASE)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(HeadsError, match=r"medusa-dist convert-heads reads its .pt and .bin files"):
        read_any_heads(tmp_path, BASE)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(HeadsError, match=r"model.safetensors cannot be read"):
        read_any_heads(tmp_path, BASE)
    save_as(tmp_path, {"speculators_model_type": "dflash"}, {"fc.weight": torch.zeros(2)})
    with pytest.raises(HeadsError, match="these are DFlash, which is not served"):
        read_any_heads(tmp_path, BASE)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HeadsError, match=r"config.json is not JSON"):
        read_any_heads(tmp_path, BASE)
