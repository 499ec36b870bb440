import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medusa_dist.errors import ModelError
from medusa_dist.model.fingerprint import fingerprint
from tests.support.tiny_models import save_tiny


def rewrite(folder: Path, change: object, metadata: dict[str, str] | None = None) -> str:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    return fingerprint(folder)


def test_fingerprint_is_equal_for_a_model_saved_in_other_ways(tmp_path: Path) -> None:
    one, two, many = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for folder, options in ((one, {}), (two, {}), (many, {"max_shard_size": "60KB"})):
        save_tiny("llama", folder, **options)
    assert len(list(many.glob("*.safetensors"))) > 1
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "use_cache": False}))
    os.utime(two / "model.safetensors", (0, 0))
    assert re.fullmatch("sha256:[0-9a-f]{64}", fingerprint(one))
    assert fingerprint(one) == fingerprint(two) == fingerprint(many)
    assert rewrite(two, lambda _: None, {"made_by": "another tool"}) == fingerprint(one)


def test_fingerprint_changes_with_weights_names_dtypes_and_heads(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    seen = {fingerprint(tmp_path)}

    def bump(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][-1, -1] += 1

    def retype(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.scale"] = tensors.pop("model.norm.weight")

    for change in (bump, retype, rename):
        seen.add(rewrite(tmp_path, change))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 5


def test_model_with_its_own_code_is_hashed_without_running_it(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    (tmp_path / "mine.py").write_text("raise AssertionError('it ran')")
    config = json.loads((tmp_path / "config.json").read_text())
    own = config | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.M"}}
    seen = {fingerprint(tmp_path)}
    for changes in ({}, {"num_key_value_heads": 1}, {"model_type": "mine2"}):
        (tmp_path / "config.json").write_text(json.dumps(own | changes))
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 4


def test_fingerprint_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        fingerprint(tmp_path)
