"""Models of every architecture, on one rank and cut over several, against transformers' own forward."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.load import load_full_rows, load_model, read_outline
from medusa_dist.ops.tp_group import TPGroup
from tests.support.loaded_models import CPU, NAMES, ROWS, load, run
from tests.support.tiny_models import VOCAB, save_tiny, tokens


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """name -> (folder, transformers' logits [4, V] at ROWS)."""
    made = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        model = save_tiny(name, folder)
        with torch.inference_mode():
            made[name] = (folder, model(input_ids=tokens()[None]).logits[0, ROWS])
    return made


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_one_rank_equals_transformers(zoo: dict[str, tuple[Path, torch.Tensor]], name: str, prepack: bool) -> None:
    folder, expected = zoo[name]
    model = load(folder, prepack=prepack)
    logits, hidden = run(model)
    assert logits.shape == (4, VOCAB) and hidden.shape == (4, model.hidden_size)
    assert (logits - expected).abs().max() < 1e-4 < expected.abs().max()
    assert model.output_head.is_packed is prepack


def _rank(rank: int, root: Path, folders: dict[str, Path]) -> None:
    """One of three processes: all architectures on ranks 0 and 1, then 9/3 heads on all three."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=3)
    pair, three = dist.new_group([0, 1]), dist.group.WORLD
    tasks = [(name, 2, pair) for name in folders] + [("llama", 3, three), ("llama-tied", 3, three)]
    results = {}
    for name, world, group in tasks:
        if rank >= world:
            continue
        aux_layers = (0, 1) if rank == 0 else ()  # heads, and so taps, are rank 0's alone
        model = load(folders[name], TPGroup(rank, world, group), prepack=name != "qwen3", aux_layers=aux_layers)
        logits, read = run(model)
        parts = model.parallel.gather_to_rank0(logits)
        results[f"{name}/{world}"] = {
            "logits": None if parts is None else torch.cat(parts, 1)[:, :VOCAB],
            "hidden": read[:, : model.hidden_size],
            "tapped": read[:, model.hidden_size :],
            "heads": (model.num_heads, model.num_kv_heads),
            "bytes": (model.checkpoint.bytes_read, model.weight_bytes()),
            "rows": load_full_rows(model, "output", torch.tensor([96, 3])),
        }
    torch.save(results, root / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cut(zoo: dict[str, tuple[Path, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of three ranks saw, by `name/world`."""
    root = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (root, {name: folder for name, (folder, _) in zoo.items()}), nprocs=3)
    return [torch.load(root / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("task", [*(f"{name}/2" for name in NAMES), "llama/3", "llama-tied/3"])
def test_sharded_model_equals_transformers(
    zoo: dict[str, tuple[Path, torch.Tensor]], cut: list[dict], task: str
) -> None:
    name, world = task.split("/")
    seen = cut[0][task]
    assert (seen["logits"] - zoo[name][1]).abs().max() < 1e-4
    one = load(zoo[name][0], aux_layers=(0, 1))
    assert (seen["tapped"] - run(one)[1][:, one.hidden_size :]).abs().max() < 1e-4
    for other in range(1, int(world)):
        assert torch.equal(seen["hidden"], cut[other][task]["hidden"])  # every rank decides on the same bits
        assert torch.equal(seen["rows"], cut[other][task]["rows"])


def test_attention_heads_are_sharded_by_whole_kv_groups(cut: list[dict]) -> None:
    assert [rank["llama/2"]["heads"] for rank in cut[:2]] == [(6, 2), (3, 1)]
    assert [rank["llama/3"]["heads"] for rank in cut] == [(3, 1)] * 3


def test_rank_reads_and_holds_only_its_part_of_the_weights(
    zoo: dict[str, tuple[Path, torch.Tensor]], cut: list[dict]
) -> None:
    whole = (zoo["llama"][0] / "model.safetensors").stat().st_size
    for rank in range(3):
        read, held = cut[rank]["llama/3"]["bytes"]
        assert read < 0.36 * whole and held < 0.36 * whole


def test_full_embedding_rows_equal_the_checkpoints(zoo: dict[str, tuple[Path, torch.Tensor]]) -> None:
    folder = zoo["llama"][0]
    model, stored = load(folder), load_file(folder / "model.safetensors")
    ids = torch.tensor([96, 0, 5, 96])
    assert torch.equal(load_full_rows(model, "input", ids), stored["model.embed_tokens.weight"][ids])
    assert torch.equal(load_full_rows(model, "output"), stored["lm_head.weight"])
    with pytest.raises(ModelError, match="outside"):
        load_full_rows(model, "output", torch.tensor([97]))


@pytest.mark.parametrize("name", NAMES)
def test_outline_equals_the_loaded_model(zoo: dict[str, tuple[Path, torch.Tensor]], name: str) -> None:
    folder = zoo[name][0]
    model, outline = load(folder), read_outline(folder, dtype=torch.float32, device=CPU)
    for key in ("num_layers", "hidden_size", "layer_width", "vocab_size"):
        assert getattr(outline, key) == getattr(model, key), key
    for which in ("input", "output"):
        assert torch.equal(load_full_rows(outline, which), load_full_rows(model, which))


def test_model_in_several_files_loads_and_a_missing_file_is_named(tmp_path: Path) -> None:
    expected = save_tiny("llama", tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    logits, _ = run(load(tmp_path))
    assert (logits - expected(input_ids=tokens()[None]).logits[0, ROWS]).abs().max() < 1e-4
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match="lacks model-00002"):
        load(tmp_path)


def test_a_missing_tensor_is_named(zoo: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path) -> None:
    shutil.copytree(zoo["llama"][0], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load(tmp_path)


def test_weights_of_another_shape_are_refused(zoo: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path) -> None:
    shutil.copytree(zoo["llama"][0], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(71)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*\(72,\).*\(71,\)"):
        load(tmp_path)


def test_a_truncated_file_is_refused(zoo: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path) -> None:
    shutil.copytree(zoo["llama"][0], tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "model.safetensors", 40_000)
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)


def test_too_many_ranks_are_refused_before_reading(zoo: dict[str, tuple[Path, torch.Tensor]]) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size 4 .* 3 key-value heads; legal: 1 to 3"):
        load(zoo["llama"][0], TPGroup(0, 4))


def test_tied_plain_weights_are_shared(zoo: dict[str, tuple[Path, torch.Tensor]]) -> None:
    model = load(zoo["llama-tied"][0], prepack=False)
    assert model.output_head.weight.data_ptr() == model.module.get_input_embeddings().weight.data_ptr()


def test_bfloat16_logits_are_near_float32_and_rope_stays_float32(zoo: dict[str, tuple[Path, torch.Tensor]]) -> None:
    folder, expected = zoo["llama"]
    model = load_model(folder, dtype=torch.bfloat16, device=CPU, parallel=TPGroup())
    logits, _ = run(model)
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert model.module.model.rotary_emb.inv_freq.dtype == torch.float32
