"""The head file: what is written is read again, and every misfit has its own words."""

import json
import os
from pathlib import Path

import pytest
import torch

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.heads_file import HeadsFile, dtype_name, expected_shapes, read_description, read_heads
from tests.support.tiny_heads import HIDDEN, VOCAB, describe, random_heads, tensors_for


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"form": "hidden+embedding", "embedding_scale": 12.5, "num_blocks": 2, "bias": False},
        {"form": "sequential", "width": 7, "tapped_layers": (-1, 0, 4)},
        {"lm_head": "own", "draft_vocab_size": 11, "logit_softcap": 30.0, "training": {"data": "none", "steps": 3}},
    ],
)
def test_saved_head_file_is_read_back_equal(fields: dict, tmp_path: Path) -> None:
    file = random_heads(**fields)
    file.save(tmp_path / "new" / "folder")
    again = read_heads(tmp_path / "new" / "folder")
    assert again.description == file.description == read_description(tmp_path / "new" / "folder")
    assert set(again.tensors) == set(file.tensors) == set(expected_shapes(file.description))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in file.tensors.items())
    ids = again.draft_vocab
    assert (ids is None) if "draft_vocab_size" not in fields else (ids.dtype == torch.int64 and ids.numel() == 11)


def test_expected_shapes_follow_the_description() -> None:
    shapes = expected_shapes(describe(2, form="hidden+embedding", num_blocks=2, lm_head="own", draft_vocab_size=5))
    assert shapes["heads.1.blocks.0.weight"] == (HIDDEN, 2 * HIDDEN)
    assert shapes["heads.1.blocks.1.weight"] == (HIDDEN, HIDDEN)
    assert shapes["heads.1.lm_head.weight"] == (5, HIDDEN) and shapes["draft_vocab"] == (5,)
    assert len(shapes) == 2 * (2 * 2 + 1) + 1


def test_tapped_layers_set_input_width_and_old_files_have_none(tmp_path: Path) -> None:
    fields = {"form": "sequential", "width": 7}
    about = describe(**fields, tapped_layers=(-1, 0, 4))
    assert (about.aux_layers, about.tap_width, about.input_width) == ((0, 4), HIDDEN, 3 * HIDDEN)
    assert expected_shapes(about)["taps.weight"] == (HIDDEN, 2 * HIDDEN)
    wide = about.base.model_copy(update={"layer_width": 20})
    projected = describe(**fields, tapped_layers=(-1, 2), base=wide)
    assert expected_shapes(projected)["taps.weight"] == (HIDDEN, 20) and projected.input_width == HIDDEN + 20
    plain = random_heads(**fields)
    assert plain.description.input_width == HIDDEN and "taps.weight" not in plain.tensors
    plain.save(tmp_path)  # as files were before layers could be tapped
    keys = json.loads((tmp_path / "heads.json").read_text())
    del keys["tapped_layers"], keys["base"]["layer_width"]
    (tmp_path / "heads.json").write_text(json.dumps(keys))
    assert read_heads(tmp_path).description == plain.description


def test_tapped_layer_that_the_model_lacks_is_refused() -> None:
    file = random_heads(form="sequential", width=7, tapped_layers=(-1, 0, 4))
    file.check_layers(5, HIDDEN)
    with pytest.raises(HeadsError, match="tapped_layers has layer 4, but the model's are 0 to 3"):
        file.check_layers(4, HIDDEN)
    with pytest.raises(HeadsError, match=r"base\.layer_width says .* 13 wide, but the model's are 20"):
        file.check_layers(5, 20)
    random_heads().check_layers(1, 20)


def test_missing_file_of_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"heads\.json is missing; a head file is a folder with"):
        read_heads(tmp_path)
    random_heads().save(tmp_path)
    (tmp_path / "heads.safetensors").unlink()
    with pytest.raises(HeadsError, match=r"heads\.safetensors is missing"):
        read_heads(tmp_path)


def test_truncated_head_file_is_refused(tmp_path: Path) -> None:
    random_heads().save(tmp_path)
    os.truncate(tmp_path / "heads.safetensors", 300)
    with pytest.raises(HeadsError, match=r"heads\.safetensors cannot be read"):
        read_heads(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "is not JSON"),
        ({"format_version": 2}, r"format_version"),
        ({"form": "magic"}, r"form: "),
        ({"wings": 2}, r"wings: unknown key"),
        ({"draft_vocab_size": 0}, r"draft_vocab_size: "),
        ({"num_heads": 17}, r"num_heads: "),
        (
            {"tapped_layers": [-1, 3]},
            r"tapped_layers other than \[-1\] belong to the form 'sequential', not to 'hidden'",
        ),
        ({"tapped_layers": []}, r"tapped_layers \[\] must be -1 and then ascending"),
        ({"tapped_layers": [3]}, r"tapped_layers \[3\]"),
        ({"tapped_layers": [-1, 3, 1]}, r"tapped_layers \[-1, 3, 1\]"),
        ({"tapped_layers": [-1, 3, 3]}, r"tapped_layers \[-1, 3, 3\]"),
        ({"tapped_layers": [-1, -1]}, r"tapped_layers \[-1, -1\]"),
        ({"base": {"name": "x"}}, r"base\.fingerprint: "),
    ],
)
def test_invalid_description_is_refused_by_key(change: dict | str, message: str, tmp_path: Path) -> None:
    random_heads().save(tmp_path)
    path = tmp_path / "heads.json"
    keys = json.loads(path.read_text())
    path.write_text(change if isinstance(change, str) else json.dumps(keys | change))
    with pytest.raises(HeadsError, match=message):
        read_heads(tmp_path)


def test_tensor_missing_misshaped_or_unknown_is_refused_by_name() -> None:
    about = describe(2)
    good = tensors_for(about)
    with pytest.raises(HeadsError, match=r"tensor heads\.1\.blocks\.0\.bias is missing \(2 heads are described\)"):
        HeadsFile(about, {name: t for name, t in good.items() if name != "heads.1.blocks.0.bias"})
    with pytest.raises(
        HeadsError, match=r"heads\.0\.blocks\.0\.weight has shape \(13, 12\), but heads\.json implies \(13, 13\)"
    ):
        HeadsFile(about, good | {"heads.0.blocks.0.weight": torch.zeros(13, 12)})
    with pytest.raises(HeadsError, match=r"heads\.2\.blocks\.0\.bias is not in the description"):
        HeadsFile(about, good | {"heads.2.blocks.0.bias": torch.zeros(13)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offsets": (1, 3, 2)}, r"offsets \[1, 3, 2\] are not 1\.\.3"),
        ({"offsets": (0, 1, 2)}, r"offsets \[0, 1, 2\]"),
    ],
)
def test_unsupported_offsets_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(HeadsError, match=message):
        random_heads(**fields)


@pytest.mark.parametrize("ids", [[3, 2, 1], [1, 1, 2], [-1, 2, 3], [1, 2, VOCAB]])
def test_invalid_draft_vocabulary_is_refused(ids: list[int]) -> None:
    about = describe(draft_vocab_size=3)
    with pytest.raises(HeadsError, match="draft_vocab must be ascending token ids inside"):
        HeadsFile(about, tensors_for(about) | {"draft_vocab": torch.tensor(ids, dtype=torch.int32)})


def test_heads_of_another_model_are_refused_unless_allowed() -> None:
    plain = random_heads()
    plain.check_base(HIDDEN, VOCAB, "sha256:any", allow_other=False)  # no fingerprint was recorded
    with pytest.raises(HeadsError, match="made for 'tiny' with hidden size 13, but the model has 14"):
        plain.check_base(14, VOCAB, None, allow_other=True)
    with pytest.raises(HeadsError, match="vocabulary 31, but the model has 32"):
        plain.check_base(HIDDEN, 32, None, allow_other=True)
    base = plain.description.base.model_copy(update={"fingerprint": "sha256:a"})
    marked = random_heads(base=base)
    marked.check_base(HIDDEN, VOCAB, "sha256:a", allow_other=False)
    with pytest.raises(HeadsError, match=r"made for another base model.*allow_untrained: true"):
        marked.check_base(HIDDEN, VOCAB, "sha256:b", allow_other=False)
    marked.check_base(HIDDEN, VOCAB, "sha256:b", allow_other=True)


def test_dtype_name_gives_the_names_of_the_config() -> None:
    assert [dtype_name(d) for d in (torch.float32, torch.bfloat16, torch.float16)] == ["float32", "bfloat16", "float16"]
