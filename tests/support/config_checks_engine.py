"""Keys that the model, the engine and a step obey: each is changed, and the change is seen there.

Part of tests/end_to_end/test_config_keys.py. A check takes what it needs of `world`, `tmp_path` and `patch` by name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from medusa_dist.config import Config, parse_config
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.capture import why_eager
from medusa_dist.engine.startup.find_heads import find_heads
from medusa_dist.engine.startup.kv_sizing import DeviceMemory, kv_blocks
from medusa_dist.engine.startup.process_group import choose_device
from medusa_dist.errors import ConfigError, HeadsError, ModelError, RequestError
from medusa_dist.medusa.heads.heads_file import read_heads
from medusa_dist.model.source import resolve_model as source
from medusa_dist.model.source.load_tokenizer import load_tokenizer
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.ops.attention.registry import BACKENDS, resolve_backend
from medusa_dist.ops.cpu.packed_weights import int8_refusal
from medusa_dist.ops.gpu.language import refusal
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.serve.placement import bundles
from medusa_dist.text.no_tokenizer import NoTokenizer
from tests.support.tiny_heads import save_heads
from tests.support.tiny_llm import save_llm

CPU = {"device": "cpu", "dtype": "float32", "kv_cache_tokens": 1024}


class World:
    """A tiny model, configs for it, and engines by their configs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ranks: dict[Config, EngineRank] = {}

    def config(self, key: str = "max_running", value: object = 4, **more: object) -> Config:
        """The key, nested by its dots, on top of what a small model on a CPU wants."""
        keys: dict[str, Any] = {"model": str(self.folder), "heads": {"source": str(self.folder / "heads")}} | CPU
        keys = {**keys, **{name: dict(v) if isinstance(v, dict) else v for name, v in more.items()}}
        *groups, last = key.split(".")
        inner = keys
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
        return parse_config(keys)

    def rank(self, config: Config) -> EngineRank:
        if config not in self._ranks:
            self._ranks[config] = EngineRank(config, self.folder)
        return self._ranks[config]

    def engine(self, key: str, value: object, **more: object) -> Engine:
        """Its trees are not cut by what this machine measured."""
        engine = self.rank(self.config(key, value, **more)).engine
        assert engine is not None
        engine.policy.cost_model.measured = None
        return engine


def request(name: str, num_prompt: int = 3, **params: object) -> Request:
    prompt = tuple(range(5, 5 + num_prompt))
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(**params), seed=1)


def run(engine: Engine, *requests: Request) -> list[tuple[int, int, int]]:
    """Of each step: sequences, rows, and the nodes of the largest tree."""
    steps = []
    verify = engine.ranks.verify

    def watched(plan: Any, *clock: Any) -> Any:
        steps.append((plan.batch_indices.size, plan.token_ids.size, int(plan.num_draft_tokens.max(initial=0))))
        return verify(plan, *clock)

    engine.ranks.verify = watched
    try:
        for one in requests:
            engine.submit(one)
        while engine.has_work:
            engine.step()
    finally:
        engine.ranks.verify = verify
    return steps


# --- the model and its heads ---


def model(world: World, tmp_path: Path) -> None:
    for folder in (world.folder, save_llm(tmp_path)):
        assert model_folder(parse_config({"model": str(folder)})) == folder
        assert parse_config({"model": str(folder)}).name == folder.name


def revision(world: World, patch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, *, revision: str | None, **_patterns: object) -> str:
        asked.append((name, revision))
        return str(world.folder)

    patch.setattr(source, "snapshot_download", download)
    for value in ("main", "v2", None):
        model_folder(parse_config({"model": "owner/name", "revision": value}))
    assert asked == [("owner/name", "main"), ("owner/name", "v2"), ("owner/name", None)]
    with pytest.raises(ConfigError, match="only hub ids have revisions"):
        model_folder(world.config("revision", "v2"))


def trust_remote_code(world: World, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """A model whose folder brings its class: the class is run, or refused."""
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    patch.syspath_prepend(str(tmp_path / "cache"))
    folder = tmp_path / "own_model"
    save_llm(folder)
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n    was_here = True\n"
    )
    given = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(given | {"model_type": "mine", "auto_map": classes}))
    keys = {"model": str(folder), "speculation": {"mode": "off"}, **CPU}
    with pytest.raises(ModelError, match="trust_remote_code"):
        EngineRank(parse_config({**keys, "trust_remote_code": False}), folder)
    made = EngineRank(parse_config({**keys, "trust_remote_code": True}), folder)
    assert made.engine is not None
    assert any(getattr(module, "was_here", False) for module in made.engine.ranks.worker.model.module.modules())


def step_log(world: World, tmp_path: Path) -> None:
    for value, num_lines in ((str(tmp_path / "steps.jsonl"), 1 + 4), (None, 0)):
        engine = world.engine("step_log", value, speculation={"mode": "off"})
        run(engine, request("a", max_tokens=4, temperature=0.0, ignore_eos=True))
        found = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
        assert len(found) == num_lines
        for path in tmp_path.iterdir():
            path.unlink()
    with pytest.raises(ConfigError, match=r"step_log: 'steps\.jsonl' is not an absolute path"):
        world.config("step_log", "steps.jsonl")


def skip_tokenizer_init(world: World) -> None:
    """Grammars follow a tokenizer, so an engine without one refuses them."""
    for value in (False, True):
        engine = world.engine("skip_tokenizer_init", value)
        assert (engine.grammars is None) is value
        assert (
            isinstance(load_tokenizer(world.folder, world.config("skip_tokenizer_init", value)), NoTokenizer) is value
        )


def heads_source(world: World) -> None:
    assert find_heads(world.config("heads.source", None)) is None
    assert find_heads(world.config("heads.source", str(world.folder / "heads"))) == world.folder / "heads"
    assert world.rank(world.config("heads.source", None)).facts["speculation"].startswith("lookup, at most")
    found = world.rank(world.config("heads.source", str(world.folder / "heads"))).facts["speculation"]
    assert found.startswith("medusa: 2 heads")


def heads_placement(world: World) -> None:
    """There is one value so far, and it is what happens: only the first rank reads heads."""
    with pytest.raises(ConfigError, match=r"heads\.placement"):
        world.config("heads.placement", "sharded")
    assert "heads" in world.engine("heads.placement", "rank0").drafters


def heads_allow_untrained(world: World, tmp_path: Path) -> None:
    about = read_heads(world.folder / "heads").description.base
    save_heads(tmp_path, about.hidden_size, about.vocab_size, form="hidden", fingerprint="of another model")
    for value in (False, True):
        config = world.config("heads.allow_untrained", value, heads={"source": str(tmp_path)})
        if value:
            assert EngineRank(config, world.folder).facts["heads_check"] is None
        else:
            with pytest.raises(HeadsError):
                EngineRank(config, world.folder)


# --- how much is drafted ---


def speculation_drafters(world: World) -> None:
    for drafters in (["heads"], ["lookup"], ["heads", "lookup"]):
        assert set(world.engine("speculation.drafters", drafters).drafters) == set(drafters)
    for wrong in ([], ["heads", "heads"], ["ngram"]):
        with pytest.raises(ConfigError, match=r"speculation\.drafters"):
            world.config("speculation.drafters", wrong)
    with pytest.raises(ConfigError, match=r"speculation\.drafters"):
        world.config("speculation.drafters", ["lookup"], speculation={"mode": "static", "tree": [[0]]})


def speculation_mode(world: World) -> None:
    assert not world.engine("speculation.mode", "off").drafters
    auto = run(world.engine("speculation.mode", "auto"), request("a", temperature=0.0, max_tokens=12))
    assert max(nodes for *_, nodes in auto) == 7  # the default of max_nodes
    tree = {"speculation": {"tree": [[0], [1], [2]]}}
    static = run(world.engine("speculation.mode", "static", **tree), request("a", temperature=0.0, max_tokens=12))
    assert max(nodes for *_, nodes in static) == 3


def speculation_max_nodes(world: World) -> None:
    for value in (0, 2, 5):
        steps = run(world.engine("speculation.max_nodes", value), request("a", temperature=0.0, max_tokens=12))
        assert max(nodes for *_, nodes in steps) == value


def speculation_tree(world: World) -> None:
    for value in ([[0], [0, 0]], [[0], [1], [2], [0, 0]]):
        engine = world.engine("speculation.tree", value, speculation={"mode": "static"})
        steps = run(engine, request("a", temperature=0.0, max_tokens=12))
        assert max(nodes for *_, nodes in steps) == len(value)


def speculation_min_accepted(world: World) -> None:
    resting = {}
    for value in (0.0, 16.0):
        engine = world.engine("speculation.min_accepted", value)
        run(engine, request("a", temperature=0.0, max_tokens=90, ignore_eos=True))
        resting[value] = engine.stats().num_paused_sequence_steps
    assert resting[0.0] == 0 < resting[16.0]


# --- limits of a step and of a request ---


def dtype(world: World) -> None:
    for name in ("float32", "bfloat16", "float16"):
        worker = world.engine("dtype", name).ranks.worker
        assert worker.pool.rows.dtype == worker.model.dtype == getattr(torch, name)
    for is_fast, found in ((True, torch.bfloat16), (False, torch.float32)):
        with mock.patch.object(torch.cpu, "_is_avx512_bf16_supported", return_value=is_fast):
            rank = EngineRank(world.config("dtype", "auto"), world.folder)
            assert rank.engine.ranks.worker.model.dtype == found and rank.facts["dtype"] == str(found)[len("torch.") :]


def quantization(world: World) -> None:
    """int8 rounds the weights where the CPU can, and is refused where it cannot; both decode."""
    plain = world.rank(world.config("quantization", "none"))
    assert plain.facts["quantization"] == "none"
    if int8_refusal() is None:
        rank = world.rank(world.config("quantization", "int8"))
        assert rank.facts["quantization"] == "int8" and rank.facts["weight_bytes"] < plain.facts["weight_bytes"]
        assert rank.engine is not None
        assert run(rank.engine, request("x", ignore_eos=True, temperature=0.0))
    with pytest.raises(ConfigError, match=r"quantization: int8 is not possible here.*float16"):
        world.rank(world.config("quantization", "int8", dtype="float16"))
    with (
        mock.patch("medusa_dist.model.load.int8_refusal", return_value="sums overflow"),
        pytest.raises(ConfigError, match="quantization: int8 is not possible here: sums overflow; use none"),
    ):
        EngineRank(world.config("quantization", "int8"), world.folder)


def attention_backend(world: World) -> None:
    """Each backend decodes, and says the same: all are exact for float32 on a CPU."""
    said = {}
    for name in ("auto", "paged_cpu", "exact", "sdpa"):
        rank = world.rank(world.config("attention_backend", name))
        assert rank.facts["attention_backend"] == ("paged_cpu" if name == "auto" else name)
        engine = rank.engine
        assert engine is not None
        engine.submit(request("x", ignore_eos=True, temperature=0.0))
        outputs = []
        while engine.has_work:
            outputs += [token for output in engine.step() for token in output.token_ids]
        said[name] = outputs
    assert len(said["auto"]) == 16 and said["auto"] == said["paged_cpu"] == said["exact"]
    assert len(said["sdpa"]) == 16
    with pytest.raises(ConfigError, match="attention_backend: paged_cpu"):
        world.rank(world.config("attention_backend", "paged_cpu", dtype="float16"))
    if refusal(torch.device("cpu")) is None:  # in the interpreter, which is too slow for an engine: the choice alone
        assert resolve_backend("triton", torch.device("cpu"), torch.float32) == "triton"
    else:
        with pytest.raises(ConfigError, match="attention_backend: triton"):
            world.rank(world.config("attention_backend", "triton"))


def cuda_graphs(world: World) -> None:
    """Without a GPU nothing is captured; tests/unit/engine/runner/test_graphed_steps.py runs what would be."""
    triton = BACKENDS["triton"](64, 2, torch.bfloat16)
    reasons = [why_eager(world.config("cuda_graphs", v), torch.device("cuda"), triton, True) for v in ("auto", "off")]
    assert reasons == [None, "cuda_graphs: off"]
    assert world.rank(world.config("cuda_graphs", "auto")).facts["cuda_graphs"] == "no: cpu has no CUDA graphs"


def device(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(world.config("device", "auto")) == choose_device(world.config("device", "cpu"))
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        choose_device(world.config("device", "cuda"))
    patch.setattr(torch.cuda, "is_available", lambda: True)
    assert [str(choose_device(world.config("device", d))) for d in ("auto", "cuda", "cpu")] == ["cuda:0"] * 2 + ["cpu"]
    assert [bundles(world.config("device", d), True)[0].get("GPU", 0) for d in ("cuda", "cpu")] == [1, 0]


def generation_config(world: World, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_k": 3}')
    for value, expected in ((str(tmp_path), {"top_k": 3}), ("vllm", {})):
        config = world.config("generation_config", value)
        assert world.rank(config).facts["default_sampling_params"] == expected


def max_model_len(world: World) -> None:
    for value in (40, 120):  # the self-check of heads is about 96 tokens
        engine = world.engine("max_model_len", value)
        assert world.rank(world.config("max_model_len", value)).facts["max_model_len"] == value
        assert (
            sum(rows for _, rows, _ in run(engine, request("a", max_tokens=None, ignore_eos=True, speculation=False)))
            == value - 1
        )
        with pytest.raises(RequestError):
            engine.submit(request("b", value + 1))


def max_running(world: World) -> None:
    for value in (1, 2, 3):
        steps = run(world.engine("max_running", value), *(request(str(i), max_tokens=9) for i in range(5)))
        assert max(sequences for sequences, *_ in steps) == value


def max_batched_tokens(world: World) -> None:
    for value in (16, 30):
        engine = world.engine("max_batched_tokens", value, max_running=4)
        assert max(rows for _, rows, _ in run(engine, request("a", 60, max_tokens=4))) == value


def memory_fraction(world: World) -> None:
    memory = DeviceMemory(free=60_000, total=100_000, workspace=0)
    counts = [
        kv_blocks(world.config("memory_fraction", value, kv_cache_tokens=None), 10_000, 2, 1000, memory)
        for value in (0.5, 0.9)
    ]
    assert counts == [10_000 // 2000, 50_000 // 2000]


def kv_cache_tokens(world: World) -> None:
    for value in (64, 320):
        assert world.rank(world.config("kv_cache_tokens", value)).facts["kv_blocks"] == value // 16 + 1


CHECKS: dict[str, Callable[..., None]] = {
    "model": model,
    "revision": revision,
    "trust_remote_code": trust_remote_code,
    "skip_tokenizer_init": skip_tokenizer_init,
    "step_log": step_log,
    "heads.source": heads_source,
    "heads.placement": heads_placement,
    "heads.allow_untrained": heads_allow_untrained,
    "speculation.drafters": speculation_drafters,
    "speculation.mode": speculation_mode,
    "speculation.max_nodes": speculation_max_nodes,
    "speculation.tree": speculation_tree,
    "speculation.min_accepted": speculation_min_accepted,
    "dtype": dtype,
    "device": device,
    "quantization": quantization,
    "attention_backend": attention_backend,
    "cuda_graphs": cuda_graphs,
    "generation_config": generation_config,
    "max_model_len": max_model_len,
    "max_running": max_running,
    "max_batched_tokens": max_batched_tokens,
    "memory_fraction": memory_fraction,
    "kv_cache_tokens": kv_cache_tokens,
}
