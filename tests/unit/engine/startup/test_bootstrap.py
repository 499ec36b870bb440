"""EngineRank: what it finds, shares out and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.find_heads import find_heads
from medusa_dist.engine.startup.process_group import choose_device
from medusa_dist.errors import ConfigError, HeadsError
from medusa_dist.outputs import FinishReason
from tests.support.tiny_eagle3 import checkpoint, save_as
from tests.support.tiny_engine import EOS, POSITIONS, VOCAB, decode, request, save_model, tiny_config
from tests.support.tiny_heads import save_heads

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    save_model("llama", made)
    return made


def test_engine_rank_reports_phases_sizes_and_speculation(folder: Path) -> None:
    phases: list[str] = []
    rank = EngineRank(tiny_config(folder, max_model_len=96), folder, progress=phases.append)
    assert phases == list(rank.facts["seconds"]) == ["connect", "load", "warm up"]
    assert rank.facts["vocab_size"] == VOCAB and rank.facts["max_model_len"] == 96
    assert rank.facts["kv_blocks"] == 2048 // 16 + 1 == rank.engine.scheduler.pool.num_blocks
    assert rank.facts["speculation"] == "medusa: 3 heads and lookup, at most 15 draft tokens per step"
    assert rank.engine.scheduler.limits.eos_ids == (EOS,)
    assert rank.engine.policy.measured_cost is not None and rank.engine.policy.measured_cost.draft_s > 0


def test_end_token_of_generation_config_alone_ends_an_output(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    asked = {"temperature": 0.0, "max_tokens": 12}
    free = decode(EngineRank(tiny_config(tmp_path), tmp_path).engine, [request("x", [3, 4], ignore_eos=True, **asked)])
    tokens = free.outputs["x"].token_ids
    end = next(t for t in tokens if t != EOS)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    rank = EngineRank(tiny_config(tmp_path), tmp_path)
    assert rank.engine.scheduler.limits.eos_ids == tuple(sorted({EOS, end}))
    run = decode(rank.engine, [request("x", [3, 4], **asked), request("y", [3, 4], ignore_eos=True, **asked)])
    first = min(tokens.index(t) for t in (EOS, end) if t in tokens)
    assert run.outputs["x"].token_ids == tokens[: first + 1]
    assert run.outputs["x"].finish_reason is FinishReason.STOP and run.outputs["y"].token_ids == tokens


def test_context_beyond_the_model_or_the_cache_is_refused_not_cut(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"max_model_len 100000 exceeds .* {POSITIONS} tokens"):
        EngineRank(tiny_config(folder, max_model_len=100_000), folder)
    with pytest.raises(ConfigError, match=r"max_model_len 96 exceeds the 32 tokens .* raise kv_cache_tokens \(32\)"):
        EngineRank(tiny_config(folder, max_model_len=96, kv_cache_tokens=32, heads={}), folder)
    rank = EngineRank(tiny_config(folder, kv_cache_tokens=96, heads={}), folder)  # not asked for: what there is
    assert rank.facts["max_model_len"] == 96


def test_engine_without_heads_or_speculation_decodes_without_drafts(folder: Path) -> None:
    for keys, words in (
        ({"heads": {}, "speculation": {"drafters": ["heads"]}}, "off: no heads for this model"),
        ({"speculation": {"mode": "off"}}, "off"),
    ):
        rank = EngineRank(tiny_config(folder, **keys), folder)
        assert rank.facts["speculation"] == words and not rank.engine.drafters
        run = decode(rank.engine, [request("x", [3, 4], max_tokens=5, ignore_eos=True)])
        assert len(run.outputs["x"].token_ids) == 5 and run.drafted == 0


def test_default_pool_on_a_cpu_holds_max_running_sequences(folder: Path) -> None:
    rank = EngineRank(tiny_config(folder, kv_cache_tokens=None, max_running=3, max_model_len=100), folder)
    assert rank.facts["kv_blocks"] == 3 * 7 + 1


def test_static_tree_larger_than_max_nodes_is_served(folder: Path) -> None:
    """The default of max_nodes (7) does not bound a static tree, nor may it bound its place in the block tables."""
    tree = [[i] for i in range(10)] + [[i, j] for i in range(4) for j in range(10)]
    outputs = []
    for speculation in ({"mode": "static", "tree": tree}, {"mode": "off"}):
        config = tiny_config(folder, max_model_len=64, speculation=speculation)
        rank = EngineRank(config, folder)
        run = decode(rank.engine, [request("x", [5] * 40, temperature=0.0, max_tokens=24, ignore_eos=True)])
        outputs.append(run.outputs["x"].token_ids)
        assert (run.drafted > 24) == (speculation["mode"] == "static")
    assert outputs[0] == outputs[1] and len(outputs[0]) == 24


def test_tree_deeper_than_the_heads_is_refused(folder: Path) -> None:
    config = tiny_config(folder, speculation={"mode": "static", "tree": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]})
    with pytest.raises(ConfigError, match=r"speculation\.tree: path \[0, 0, 0, 0\] is 4 deep, .* 3 heads"):
        EngineRank(config, folder)


def test_tree_beyond_a_short_draft_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    """Indices are bounded by the number of tokens the heads know; a tree within it is served and changes nothing."""
    save_heads(tmp_path, 72, VOCAB, draft_vocab_size=5)
    keys = {"heads": {"source": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"speculation\.tree: path \[5\] has an index outside 0\.\.4"):
        EngineRank(tiny_config(folder, speculation={"mode": "static", "tree": [[0], [5]]}, **keys), folder)
    outputs = []
    for speculation in ({"mode": "static", "tree": [[0], [4], [4, 4]]}, {"mode": "off"}):
        rank = EngineRank(tiny_config(folder, speculation=speculation, **keys), folder)
        run = decode(rank.engine, [request("x", [5, 6], temperature=0.0, max_tokens=24, ignore_eos=True)])
        outputs.append(run.outputs["x"].token_ids)
        assert (run.drafted > 0) == (speculation["mode"] == "static")
    assert outputs[0] == outputs[1]


def test_heads_for_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    save_heads(tmp_path, 71, VOCAB)
    with pytest.raises(HeadsError, match="hidden size 71, but the model has 72"):
        EngineRank(tiny_config(folder, heads={"source": str(tmp_path)}), folder)


def test_find_heads_gives_the_configured_folder_or_none_if_off(folder: Path) -> None:
    assert find_heads(tiny_config(folder)) == folder / "heads"
    assert find_heads(tiny_config(folder, heads={})) is None
    assert find_heads(tiny_config(folder, speculation={"mode": "off"})) is None


def test_device_auto_without_a_gpu_is_cpu_and_cuda_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(tiny_config(folder, device="auto")).type == "cpu"
    with pytest.raises(ConfigError, match="device: cuda is configured, but torch sees no GPU"):
        choose_device(tiny_config(folder, device="cuda"))


def test_kv_cache_tokens_sets_the_number_of_blocks(folder: Path) -> None:
    config = tiny_config(folder, kv_cache_tokens=32)
    assert EngineRank(config, folder).facts["kv_blocks"] == 3


def eagle3_for(folder: Path, **changes: object) -> tuple[dict, dict[str, torch.Tensor]]:
    """EAGLE-3 heads that fit the tiny model."""
    tapped = {"eagle_aux_hidden_state_layer_ids": [0, 1]}
    return checkpoint("specforge", **({"hidden_size": 72, "vocab_size": VOCAB, "eagle_config": tapped} | changes))


def test_published_heads_are_served_from_their_own_folders(folder: Path, tmp_path: Path) -> None:
    save_as(tmp_path / "eagle", *eagle3_for(folder))
    medusa = {f"{head}.0.linear.{part}": torch.randn(shape) * 0.1 for head in range(3) for part, shape in PARTS.items()}
    save_as(tmp_path / "medusa", {"medusa_num_heads": 3, "medusa_num_layers": 1}, medusa)
    plain = EngineRank(tiny_config(folder, heads={}), folder)
    one = request("x", [5] * 20, temperature=0.0, max_tokens=16, ignore_eos=True)
    for name, told in (("eagle", "EAGLE-3: 5 levels"), ("medusa", "medusa: 3 heads")):
        config = tiny_config(folder, heads={"source": str(tmp_path / name), "allow_untrained": True})
        rank = EngineRank(config, folder)
        assert rank.facts["speculation"] == f"{told} and lookup, at most 15 draft tokens per step"
        run = decode(rank.engine, [one])
        assert run.drafted > 0
        assert run.outputs["x"].token_ids == decode(plain.engine, [one]).outputs["x"].token_ids


PARTS = {"weight": (72, 72), "bias": (72,)}


@pytest.mark.parametrize(
    ("changes", "without", "told"),
    [
        ({}, ["fc.weight", "norm.weight"], r"without the tensors fc\.weight, norm\.weight"),
        ({"vocab_size": VOCAB + 2}, [], rf"with vocabulary {VOCAB + 2}, but the model has {VOCAB}"),
        ({"target_hidden_size": 64}, [], "with hidden size 64, but the model has 72"),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2]}},
            [],
            r"outputs of layers \[0, 2\], but the model's are 0 to 1",
        ),
        ({"num_hidden_layers": 3}, [], "num_hidden_layers: 3 are not served"),
        ({"speculators_model_type": "dflash"}, [], "these are DFlash, which is not served"),
    ],
)
def test_published_heads_that_do_not_fit_are_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, without: list[str], told: str
) -> None:
    monkeypatch.setattr("medusa_dist.engine.startup.bootstrap.load_model", lambda *_, **__: pytest.fail("loaded"))
    shaping = ("vocab_size", "eagle_config", "target_hidden_size")
    config, tensors = eagle3_for(folder, **{key: changes[key] for key in shaping if key in changes})
    save_as(tmp_path, config | changes, {name: t for name, t in tensors.items() if name not in without})
    with pytest.raises(HeadsError, match=told):
        EngineRank(tiny_config(folder, heads={"source": str(tmp_path)}), folder)
