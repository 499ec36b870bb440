"""`medusa-dist check` on configs over tiny models: what it counts, what it refuses, and what it says."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from medusa_dist.check import roofline as roof
from medusa_dist.check.check import CheckReport, Options, check
from medusa_dist.check.memory import CONTEXT_BYTES
from medusa_dist.check.roofline import GPU
from medusa_dist.cli.main import app
from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.drafters.context_drafter import ContextDrafter
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.find_heads import make_drafters
from medusa_dist.errors import HubUnreachableError
from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile, expected_shapes, read_heads
from medusa_dist.medusa.published.reader import read_any_heads
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.load import load_model
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.serve.config_file import read_serve_file
from tests.support.tiny_eagle3 import checkpoint, save_as, save_checkpoint
from tests.support.tiny_models import VOCAB, save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
HIDDEN = 72
BLOCK = 2 * 2 * 3 * 8 * 16 * 4  # keys and values, 2 layers, 3 heads of 8, 16 tokens, float32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny("llama", folder)
    save_heads(folder / "heads", fingerprint(folder))
    return folder


def save_heads(folder: Path, base: str | None, **about: object) -> None:
    facts = BaseModelFacts(name="tiny", fingerprint=base, hidden_size=HIDDEN, vocab_size=VOCAB)
    given = {"form": "hidden+embedding", "num_heads": 2, "offsets": (1, 2), "dtype": "float32", "base": facts}
    description = HeadsDescription.model_validate(given | about)
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(description).items()}
    if description.draft_vocab_size is not None:
        tensors["draft_vocab"] = torch.arange(description.draft_vocab_size, dtype=torch.int32)
    HeadsFile(description, tensors).save(folder)


def write(tmp_path: Path, model: Path | str, deployment: dict | None = None, **keys: object) -> Path:
    args = {"model": str(model), "dtype": "float32", "max_running": 4, **keys}
    application = {"name": "tiny", "import_path": "medusa_dist.app:build_app", "args": args}
    if deployment is not None:
        application["deployments"] = [{"name": "Medusa", **deployment}]
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


def report(tmp_path: Path, model: Path | str, options: Options | None = None, **keys: object) -> CheckReport:
    (found,) = check(read_serve_file(write(tmp_path, model, **keys), "Medusa"), options or Options())
    return found


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, words)])


def on_toy(monkeypatch: pytest.MonkeyPatch, memory_bytes: int) -> Options:
    monkeypatch.setitem(roof.GPUS, "toy", GPU("toy", memory_bytes, 1e12, 1e14, 1e13))
    return Options(gpu="toy")


def fixed(found: CheckReport, rank: int = 0) -> int:
    assert found.memory is not None
    return found.memory.ranks[rank].fixed


# --- bytes ---


def test_memory_of_a_rank_equals_that_of_a_started_one(tmp_path: Path, model: Path) -> None:
    found = report(tmp_path, model, device="cpu", max_model_len=60, heads={"source": str(model / "heads")})
    rank = EngineRank(found.config, model)
    assert found.ok and found.memory is not None and found.weights_seen == "folder"
    (memory,) = found.memory.ranks
    assert memory.weights == rank.facts["weight_bytes"]
    assert memory.block_bytes == BLOCK
    assert found.memory.kv_blocks + 1 == rank.facts["kv_blocks"] == 4 * 4 + 1
    assert found.memory.kv_bytes(memory) == rank.engine.scheduler.pool.num_blocks * BLOCK
    assert found.heads == "2 heads for tiny"


def test_8_bit_weights_are_counted_and_are_a_problem_on_a_gpu(tmp_path: Path, model: Path) -> None:
    plain, rounded = (
        report(tmp_path, model, device="cpu", dtype="float32", quantization=name).memory for name in ("none", "int8")
    )
    assert plain is not None and rounded is not None
    assert rounded.ranks[0].weights < plain.ranks[0].weights
    found = report(tmp_path, model, Options(gpu="h100"), device="cuda", quantization="int8")
    assert found.problems == ["quantization: there are no 8-bit products for GPUs yet; use none, or device: cpu"]


TAPPED = {"form": "sequential", "width": 5, "tapped_layers": (-1, 0, 1)}


@pytest.mark.parametrize(("known", "form"), [(None, {}), (13, {}), (13, TAPPED)])
def test_draft_bytes_equal_the_tensors_that_the_drafter_holds(
    tmp_path: Path, model: Path, known: int | None, form: dict
) -> None:
    """float16, where layers are not packed and the drafter's tensors can be counted."""
    heads = tmp_path / "heads"
    save_heads(heads, None, draft_vocab_size=known, **form)
    found = report(tmp_path, model, device="cpu", dtype="float16", heads={"source": str(heads)})
    assert found.memory is not None
    draft = found.memory.ranks[0].draft
    assert draft.output_rows == (known or VOCAB) * HIDDEN * 2
    assert draft.embedding == VOCAB * HIDDEN * 2
    loaded = load_model(model, dtype=torch.float16, device=torch.device("cpu"), parallel=TPGroup())
    drafter = make_drafters(SpeculationConfig(), read_heads(heads), loaded)["heads"]
    held = [drafter._embedding, *drafter._heads.buffers(), *drafter._heads.parameters()]
    assert draft.total == sum(t.nbytes for t in held if t is not None)
    assert not form or draft.heads == 2 * (5 * 2 * HIDDEN + 5 + HIDDEN * 5 + HIDDEN * 2 * HIDDEN)


@pytest.mark.parametrize("is_fast", [True, False])
def test_draft_bytes_are_bfloat16_only_where_the_cpu_multiplies_it_fast(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    """bfloat16 beside a float32 model where a CPU multiplies it fast; the embedding stays the model's."""
    save_heads(tmp_path / "heads", None, **(TAPPED | {"draft_vocab_size": 13, "dtype": "bfloat16"}))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast)
    keys = {"dtype": "float32", "heads": {"source": str(tmp_path / "heads")}}
    for options, size in ((None, 2 if is_fast else 4), (Options(gpu="h100"), 4)):
        found = report(tmp_path, model, options, device="cpu" if options is None else "cuda", **keys)
        assert found.memory is not None
        draft = found.memory.ranks[0].draft
        assert draft.heads == size * (5 * 2 * HIDDEN + 5 + HIDDEN * 5 + HIDDEN * 2 * HIDDEN)
        assert (draft.output_rows, draft.embedding) == (size * 13 * HIDDEN, 4 * VOCAB * HIDDEN)


def test_draft_bytes_use_the_dtype_that_the_drafter_uses(tmp_path: Path, model: Path) -> None:
    """Whichever that is on this machine."""
    save_heads(tmp_path / "heads", None, **(TAPPED | {"draft_vocab_size": 13, "dtype": "bfloat16"}))
    found = report(tmp_path, model, device="cpu", heads={"source": str(tmp_path / "heads")})
    loaded = load_model(model, dtype=torch.float32, device=torch.device("cpu"), parallel=TPGroup(), aux_layers=(0, 1))
    drafter = make_drafters(SpeculationConfig(), read_heads(tmp_path / "heads"), loaded)["heads"]
    assert found.memory is not None
    assert found.memory.ranks[0].draft.output_rows == 13 * HIDDEN * drafter._heads.dtype.itemsize


EAGLE = {"hidden_size": HIDDEN, "vocab_size": VOCAB, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]}}


@pytest.mark.parametrize("own_embedding", [True, False])
def test_eagle3_heads_are_counted_with_the_kv_blocks_of_their_layer(
    tmp_path: Path, model: Path, own_embedding: bool
) -> None:
    """What the drafter holds, in float16, where layers are not packed; the same from config.json alone."""
    config, tensors = checkpoint("specforge", **EAGLE)
    if not own_embedding:
        del tensors["embed_tokens.weight"]
    save_as(tmp_path / "heads", config, tensors)
    found = report(tmp_path, model, device="cpu", dtype="float16", heads={"source": str(tmp_path / "heads")})
    loaded = load_model(model, dtype=torch.float16, device=torch.device("cpu"), parallel=TPGroup(), aux_layers=(0, 1))
    facts = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB)
    drafter = make_drafters(SpeculationConfig(), read_any_heads(tmp_path / "heads", facts), loaded)["heads"]
    assert isinstance(drafter, ContextDrafter) and found.memory is not None and found.ok
    heads, rank = drafter._heads, found.memory.ranks[0]
    held = [drafter._embedding, *heads.buffers(), *heads.parameters(), *heads._norms.values()]
    assert rank.draft.total == sum(t.nbytes for t in held)
    plain = report(tmp_path, model, device="cpu", dtype="float16", speculation={"mode": "off"}).memory
    assert plain is not None
    assert rank.block_bytes == plain.ranks[0].block_bytes + drafter.kv_block_bytes
    assert found.heads == "5 EAGLE-3 levels for a base model that config.json does not name"


def test_eagle3_heads_that_do_not_fit_are_a_problem(tmp_path: Path, model: Path) -> None:
    save_checkpoint(tmp_path / "heads", "specforge", **(EAGLE | {"vocab_size": VOCAB + 1}))
    found = report(tmp_path, model, device="cpu", heads={"source": str(tmp_path / "heads")})
    assert len(found.problems) == 1 and f"with vocabulary {VOCAB + 1}, but the model has {VOCAB}" in found.problems[0]
    save_as(tmp_path / "heads", {"speculators_model_type": "peagle"}, {"fc.weight": torch.zeros(1)})
    found = report(tmp_path, model, device="cpu", heads={"source": str(tmp_path / "heads")})
    assert len(found.problems) == 1 and "these are P-EAGLE, which is not served" in found.problems[0]


def test_hub_heads_are_counted_from_their_config_alone(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tensors = checkpoint("specforge", **EAGLE)
    save_as(tmp_path / "whole", config, tensors)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    monkeypatch.setattr("medusa_dist.check.check.hub_folder", lambda *_: tmp_path / "hub")
    found = report(tmp_path, model, device="cpu", heads={"source": "someone/heads"})
    whole = report(tmp_path, model, device="cpu", heads={"source": str(tmp_path / "whole")})
    assert found.ok and found.memory is not None and whole.memory is not None
    assert found.memory.ranks[0].draft == whole.memory.ranks[0].draft
    (tmp_path / "hub" / "config.json").write_text('{"medusa_num_heads": 3}')
    found = report(tmp_path, model, device="cpu", heads={"source": "someone/heads"})
    assert "config.json alone does not describe Medusa heads" in found.problems[0]


def test_hub_heads_that_cannot_be_reached_are_not_counted_and_said_so(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> Path:
        raise HubUnreachableError("someone/heads is not on this machine")

    monkeypatch.setattr("medusa_dist.check.check.hub_folder", unreachable)
    found = report(tmp_path, model, device="cpu", heads={"source": "someone/heads"})
    assert found.ok and found.heads == "not counted"
    assert "heads: neither their fit nor their memory: someone/heads is not on this machine" in found.unchecked


def test_tapped_layer_that_the_model_lacks_is_a_problem_of_heads(tmp_path: Path, model: Path) -> None:
    save_heads(tmp_path / "heads", None, **(TAPPED | {"tapped_layers": (-1, 7)}))
    found = report(tmp_path, model, device="cpu", heads={"source": str(tmp_path / "heads")})
    assert not found.ok and found.problems == ["heads: tapped_layers has layer 7, but the model's are 0 to 1"]


def test_two_ranks_share_kv_heads_and_only_rank_0_holds_draft_heads(tmp_path: Path, model: Path) -> None:
    """Three key-value heads over two ranks: the first holds two, so it decides how many blocks there are."""
    found = report(tmp_path, model, device="cpu", tensor_parallel_size=2, heads={"source": str(model / "heads")})
    assert found.memory is not None
    first, second = found.memory.ranks
    assert (first.block_bytes, second.block_bytes) == (BLOCK * 2 // 3, BLOCK // 3)
    assert first.draft.total > 0 == second.draft.total and first.weights > second.weights


def test_rank_with_the_fewest_kv_blocks_limits_the_cache(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = on_toy(monkeypatch, int((CONTEXT_BYTES + 5e6) / 0.85))  # 5 MB for weights and cache
    keys = {"tensor_parallel_size": 2, "max_running": 512, "max_model_len": 64, "dtype": "float16"}
    found = report(tmp_path, model, options, **keys)
    assert found.ok and found.memory is not None
    first, second = (rank.kv_blocks for rank in found.memory.ranks)
    assert found.memory.kv_blocks == first < second
    assert "limited by rank 0" in run(write(tmp_path, model, **keys), "--gpu", "toy").stdout


# --- what does not fit ---


def test_reported_missing_bytes_are_exactly_those_missing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes said to lack are the bytes that lack: with them it fits, with a little less it does not."""
    heads = {"source": str(model / "heads")}
    total = CONTEXT_BYTES
    small = report(tmp_path, model, on_toy(monkeypatch, total), heads=heads)
    (problem,) = small.problems
    lack = math.ceil(2 * BLOCK * (1 + 2 / 2)) - (total - fixed(small) - int(total * (1 - 0.9 + 0.05)))
    assert f"rank 0 is missing {lack:,} bytes ({lack / 1e6:.1f} MB) of toy's 1.00 GB" in problem
    assert "use a GPU with more memory" in problem and "dtype: bfloat16" in problem
    assert "tensor_parallel_size: more ranks (up to 3)" in problem
    needed = total + math.ceil(lack / 0.85) + 2  # 15% of what is added is kept free, too
    fits = report(tmp_path, model, on_toy(monkeypatch, needed), heads=heads)
    assert fits.ok and fits.memory is not None and fits.memory.kv_blocks >= 2
    assert not report(tmp_path, model, on_toy(monkeypatch, needed - 1000), heads=heads).ok


def test_suggested_memory_fraction_fits_and_a_lower_one_does_not(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = on_toy(monkeypatch, int(CONTEXT_BYTES / 0.8))
    (problem,) = report(tmp_path, model, options, memory_fraction=0.7).problems
    wanted = float(problem.split("memory_fraction: at least ")[1].split(";")[0])
    assert report(tmp_path, model, options, memory_fraction=wanted).ok
    assert not report(tmp_path, model, options, memory_fraction=wanted - 0.02).ok


def test_suggested_kv_cache_tokens_fit_and_one_block_more_does_not(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = on_toy(monkeypatch, CONTEXT_BYTES * 2)
    found = report(tmp_path, model, options, kv_cache_tokens=10**9)
    (problem,) = found.problems
    assert problem.startswith("rank 0 is missing ") and "Change kv_cache_tokens: at most " in problem
    most = int(problem.split("at most ")[1].split(" ")[0])
    assert report(tmp_path, model, options, kv_cache_tokens=most).ok
    assert not report(tmp_path, model, options, kv_cache_tokens=most + 16).ok


def test_heads_that_do_not_fit_suggest_smaller_heads_or_no_drafts(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {"source": str(model / "heads")}
    plain = report(tmp_path, model, on_toy(monkeypatch, 2 * CONTEXT_BYTES), heads={})
    total = math.ceil((fixed(plain) + 4 * BLOCK + 10) / 0.85) + 10
    options = on_toy(monkeypatch, total)
    assert report(tmp_path, model, options).ok
    (problem,) = report(tmp_path, model, options, heads=heads).problems
    assert "heads.source: heads with a smaller draft vocabulary (or speculation.mode: off)" in problem
    assert report(tmp_path, model, options, heads=heads, speculation={"mode": "off"}).ok


def test_kv_cache_shorter_than_max_model_len_is_noted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = on_toy(monkeypatch, 2 * CONTEXT_BYTES)
    found = report(tmp_path, model, options, kv_cache_tokens=32)
    assert found.ok and any("max_model_len 64 exceeds the 32 tokens of the KV cache" in n for n in found.notes)
    (problem,) = report(tmp_path, model, options, kv_cache_tokens=32, max_model_len=64).problems
    assert problem.startswith("max_model_len 64 exceeds the 32 tokens that the KV cache holds")


def test_a_context_longer_than_the_models(tmp_path: Path, model: Path) -> None:
    (problem,) = report(tmp_path, model, device="cpu", max_model_len=65).problems
    assert problem.startswith("max_model_len 65 exceeds the model's context length of 64 tokens")


# --- what cannot work ---


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor_parallel_size": 4}, "tensor_parallel_size 4 does not fit llama: .* legal: 1 to 3"),
        ({"heads": {"source": "/nowhere/heads"}}, "heads.*nowhere"),
        ({"model": "/nowhere/model"}, "model: there is no folder /nowhere/model"),
    ],
)
def test_problems_name_the_key(tmp_path: Path, model: Path, keys: dict, message: str) -> None:
    result = run(write(tmp_path, **({"model": model} | keys)), "--gpu", "h100")
    assert result.exit_code == 1
    assert re.search(message, " ".join(result.stdout.split())), result.stdout


def test_heads_of_another_model_are_a_problem_unless_allowed(tmp_path: Path, model: Path) -> None:
    save_heads(tmp_path / "heads", "sha256:other")
    found = report(tmp_path, model, device="cpu", heads={"source": str(tmp_path / "heads")})
    assert "fingerprints differ" in found.problems[0] and found.memory is not None  # the rest is still checked
    allowed = {"source": str(tmp_path / "heads"), "allow_untrained": True}
    assert report(tmp_path, model, device="cpu", heads=allowed).ok


def test_tree_deeper_than_the_heads_is_a_problem(tmp_path: Path, model: Path) -> None:
    tree = {"mode": "static", "tree": [[0], [0, 0], [0, 0, 0]]}
    found = report(tmp_path, model, device="cpu", heads={"source": str(model / "heads")}, speculation=tree)
    assert "is 3 deep, but the model has 2 heads" in found.problems[0]


def test_more_ranks_than_gpus_on_a_node_is_a_problem_unless_packed(tmp_path: Path, model: Path) -> None:
    options = Options(gpu="h100", gpus_per_node=2)
    found = report(tmp_path, model, options, tensor_parallel_size=3)
    assert "tensor_parallel_size 3 needs 3 GPUs on one node" in found.problems[0]
    assert report(tmp_path, model, options, tensor_parallel_size=3, deployment={"placement_group_strategy": "PACK"}).ok
    override = {"placement_group_bundles": [{"CPU": 1}]}
    assert "placement_group_bundles" in report(tmp_path, model, options, deployment=override).problems[0]


def test_placement_counts_bundles_replicas_and_nodes(tmp_path: Path, model: Path) -> None:
    keys = {"tensor_parallel_size": 3, "resources": {"cpus_per_rank": 2, "front_cpus": 0.25}}
    found = report(tmp_path, model, Options(gpu="h100"), deployment={"num_replicas": 5}, **keys)
    plan = found.placement
    assert plan.bundles == [{"CPU": 2.25, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert plan.total == {"CPU": 6.25, "GPU": 3.0} and plan.replicas == (5, 5)
    assert plan.nodes == 3  # two groups of three on a node of eight
    scaled = report(tmp_path, model, Options(gpu="h100"), autoscaling={"min_replicas": 2, "max_replicas": 9})
    assert scaled.placement.replicas == (2, 9) and scaled.placement.nodes == 2


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_gpu_option_sets_the_gpu_and_is_refused_for_a_cpu_config(tmp_path: Path, model: Path, device: str) -> None:
    path = write(tmp_path, model, device=device)
    result = run(path, "--gpu", "l4")
    assert result.exit_code == (1 if device == "cpu" else 0)
    assert ("l4 (23.62 GB)" in result.stdout) is (device == "auto")
    assert ("assuming h100" in run(path).stdout) is (device == "auto")


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ([], "proxy_locations"),
        (["applications", 0], "route_prefixx"),
        (["applications", 0, "args"], "max_runing"),
        (["applications", 0, "args", "heads"], "sorce"),
        (["applications", 0, "args", "speculation"], "max_node"),
        (["applications", 0, "deployments", 0], "num_replica"),
    ],
)
def test_unknown_key_at_any_level_is_an_error_with_a_suggestion(
    tmp_path: Path, model: Path, where: list, key: str
) -> None:
    path = write(tmp_path, model, deployment={}, heads={}, speculation={})
    tree = yaml.safe_load(path.read_text())
    at = tree
    for step in where:
        at = at[step]
    at[key] = 1
    path.write_text(yaml.safe_dump(tree))
    result = run(path)
    assert result.exit_code == 1 and f"{key}: unknown key; did you mean" in result.stderr


# --- without weights ---


def test_config_json_alone_gives_the_same_memory_as_the_weights(tmp_path: Path, model: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model / "config.json").read_text())
    heads = {"source": str(model / "heads")}
    whole = report(tmp_path, model, Options(gpu="h100"), heads=heads)
    alone = report(tmp_path, "owner/not-on-this-machine", Options(gpu="h100", model=str(bare)), heads=heads)
    assert alone.ok and alone.weights_seen == "none" and alone.memory == whole.memory and alone.roof == whole.roof
    assert any("no weights to compute a fingerprint from" in line for line in alone.unchecked)
    said = run(write(tmp_path, "owner/not-on-this-machine"), "--model", bare, "--gpu", "h100").stdout
    assert "from config.json only: no weights were read" in said


# --- output ---


def test_json_report_has_memory_and_roofline_and_sets_the_exit_code(tmp_path: Path, model: Path) -> None:
    path = write(tmp_path, model, heads={"source": str(model / "heads")}, speculation={"max_nodes": 15})
    result = run(path, "--gpu", "h100", "--json", "--context", "16")
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    assert found["ok"] and found["application"] == "tiny" and found["problems"] == []
    assert found["memory"]["kv_tokens"] == found["memory"]["kv_blocks"] * 16
    assert found["memory"]["ranks"][0]["weights"] > 0 and found["gpu"]["name"] == "h100"
    lone, many = found["roof"]["steps"]
    assert (lone["plain"]["rows"], lone["tree"]["rows"]) == (1, 16)
    assert (many["plain"]["rows"], many["tree"]["rows"]) == (4, 64)
    assert found["roof"]["knee_rows"] > 1 and lone["tree"]["seconds"] > lone["plain"]["seconds"]
    broken = run(write(tmp_path, model, tensor_parallel_size=9), "--gpu", "h100", "--json")
    assert broken.exit_code == 1 and not json.loads(broken.stdout)[0]["ok"]


def test_table_lists_every_rank_and_ends_with_fits(tmp_path: Path, model: Path) -> None:
    path = write(tmp_path, model, heads={"source": str(model / "heads")}, tensor_parallel_size=2)
    result = run(path, "--gpu", "h100")
    assert result.exit_code == 0 and "\x1b" not in result.stdout  # plain where it is no terminal
    lines = result.stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("rank"))
    assert lines[header].split()[:3] == ["rank", "weights", "heads"] and "…" not in result.stdout
    assert lines[header + 1].split()[0] == "0" and lines[header + 2].split()[0] == "1"
    assert lines[-1] == "fits" and "Knee: up to" in result.stdout
