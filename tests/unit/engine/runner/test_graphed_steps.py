"""Captured steps, with a plain call in the place of the graph: the tokens of the engine, from buffers that lie."""

import random
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from medusa_dist.engine.runner.graph_buckets import EAGER, bucket_for, graph_buckets
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.startup import bootstrap
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import open_store
from medusa_dist.engine.startup.step_cost import measure_step_cost
from tests.support.attention_cases import needs_triton
from tests.support.equivalence import SITUATIONS, TREES, same, speculated
from tests.support.expert_twin import WITH_EXPERTS
from tests.support.fake_gpu import GPU
from tests.support.fake_step import fake_step
from tests.support.graphed_rank import GraphedRank, graphed, poison
from tests.support.tiny_engine import VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config
from tests.support.two_graphed_ranks import WORLD, run_rank

pytestmark = pytest.mark.usefixtures("one_thread")
ROUTED = ["mixtral", "qwen2-moe"]
NAMES = ["llama", "gemma2", "mixtral"]  # gemma2: softcap, and windows of 4, shorter than its trees
ALL = graph_buckets(8, 15)
BUCKETS = {"all": ALL, "small ones": (4, 8, 24), "one": (128,)}
WHOLE = {"top_p": 0.9}, {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 3}, {"temperature": 0.7}


def requests(kind: str) -> list:
    rng = random.Random(1)
    params = {"greedy": ({"temperature": 0.0},), "sampled": ({"temperature": 0.8},), "whole rows": WHOLE}[kind]
    lengths = [3, 41, 17, 1, 29, 58, 9, 33]
    return [
        request(
            f"r{i}",
            [rng.randrange(VOCAB) for _ in range(length)],
            seed=rng.getrandbits(64) - 2**63,
            **({"max_tokens": 6 + 2 * i, "ignore_eos": True} | params[i % len(params)]),
        )
        for i, length in enumerate(lengths)
    ]


class World:
    """A tiny model; its engine launch by launch and captured; what each request says alone, launch by launch."""

    def __init__(self, name: str, folder) -> None:
        self.folder = folder
        save_model(name, folder)
        with mock.patch.object(bootstrap, "choose_kernels", lambda *_: WITH_EXPERTS):
            self.rank = EngineRank(tiny_config(folder), folder)
        self.eager = graphed(self.rank, ())
        self.captured = {words: graphed(self.rank, buckets) for words, buckets in BUCKETS.items()}
        self._references: dict[str, Run] = {}

    def reference(self, kind: str) -> Run:
        if kind not in self._references:
            whole = Run()
            for one in requests(kind):
                whole.outputs |= decode(engine_over(self.eager, Setting()), [one]).outputs
            self._references[kind] = whole
        return self._references[kind]

    def truth(self, kind: str) -> dict[str, tuple[int, ...]]:
        return {name: output.token_ids for name, output in self.reference(kind).outputs.items()}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, World]:
    return {name: World(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def run(world: World, rank: GraphedRank, setting: Setting, kind: str, arrivals: list[int] | None = None) -> Run:
    """Poisoned before each step; counts the steps of each bucket."""
    engine = engine_over(rank, setting, world.truth(kind))
    worker = engine.ranks.worker
    counts: dict[int, int] = {}
    verify = engine.ranks.verify

    def poisoned(plan: Plan, *clock: object):
        counts[plan.graph_rows] = counts.get(plan.graph_rows, 0) + 1
        poison(worker)
        return verify(plan, *clock)

    engine.ranks.verify = poisoned
    try:
        found = decode(engine, requests(kind), arrivals=arrivals)
    finally:
        engine.ranks.verify = verify
    found.counts = counts
    return found


@pytest.mark.parametrize("kind", ["greedy", "sampled", "whole rows"])
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_captured_steps_with_drafts_say_what_launches_say_without(
    worlds: dict[str, World], name: str, situation: str, kind: str
) -> None:
    world, (setting, arrivals) = worlds[name], SITUATIONS[situation]
    setting = Setting(**(vars(setting) | {"nodes": 15, "skill": 0.6}))
    found = run(world, world.captured["all"], setting, kind, arrivals)
    same(found, world.reference(kind))
    speculated(found)
    assert EAGER not in found.counts and len(found.counts) > 1


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("buckets", BUCKETS)
def test_any_buckets_say_the_same(worlds: dict[str, World], buckets: str, tree: str) -> None:
    """Steps larger than the largest bucket are launched; one large bucket is mostly padding."""
    world = worlds["llama"]
    setting = Setting(**(vars(Setting(skill=0.6)) | TREES[tree]))
    found = run(world, world.captured[buckets], setting, "sampled")
    same(found, world.reference("sampled"))
    speculated(found)
    assert set(found.counts) <= {EAGER, *BUCKETS[buckets]} and set(found.counts) != {EAGER}
    assert (EAGER in found.counts) == (buckets == "small ones")


def test_step_times_are_measured_in_captured_steps(worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one sequence with more drafts than a request may have."""
    world = worlds["llama"]
    ranks, plans = world.captured["all"].engine.ranks, []
    verify = ranks.verify
    monkeypatch.setattr(ranks, "verify", lambda plan: plans.append(plan) or verify(plan))
    cost = measure_step_cost(ranks, world.rank.config, 400, world.rank.engine.drafters)
    assert cost.rows[-1] == 64 and {(plan.token_ids.size, plan.graph_rows) for plan in plans} == {
        (rows, rows) for rows in cost.rows
    }


def test_a_poisoned_array_that_is_not_written_shows(worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: each array that stays poisoned changes what is said, or is an error."""
    world = worlds["llama"]
    rank = world.captured["all"]
    steps = rank.engine.ranks.worker._graphs
    for name in ("input_ids", "positions", "slot_mapping", "words", "block_tables", "items"):
        with monkeypatch.context() as patch:
            for buffers in steps._buffers.values():
                unseen = {**buffers.arrays, name: buffers.arrays[name].copy()}
                patch.setattr(buffers, "arrays", unseen)
            try:
                found = run(world, rank, Setting(nodes=15, skill=0.6), "greedy")
            except Exception:
                rank.engine.ranks.worker.pool.rows.zero_()
                continue
            assert any(found.outputs[r].token_ids != tokens for r, tokens in world.truth("greedy").items()), name


@given(
    max_running=st.integers(1, 300),
    most_nodes=st.integers(0, 255),
    rows=st.lists(st.integers(1, 20_000), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_all_ranks_run_a_plan_in_the_bucket_that_rank_0_chose(
    max_running: int, most_nodes: int, rows: list[int]
) -> None:
    buckets = graph_buckets(max_running, most_nodes)
    assert list(buckets) == sorted(set(buckets)) and buckets[0] == 4
    for step, count in enumerate(rows):
        chosen = bucket_for(buckets, count)
        fitting = [bucket for bucket in buckets if bucket >= count]
        assert chosen == (min(fitting) if fitting else EAGER)
        if count <= min(512, max_running * (1 + most_nodes)):
            assert chosen != EAGER, "every step in which all sequences decode is captured, up to 512 rows"
        words = replace(EMPTY, step=step, graph_rows=chosen, token_ids=np.zeros(count, dtype=np.int64)).pack()
        received = [Plan.unpack(words.copy(), 0, step) for _ in range(4)]
        assert {plan.graph_rows for plan in received} == {chosen}


EMPTY = Plan(1, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_two_ranks_replay_the_same_buckets_and_say_what_one_says(worlds: dict[str, World], name: str) -> None:
    """Over gloo; each rank keeps its steps' buckets."""
    world = worlds[name]
    folder = world.folder
    store = open_store(WORLD, "127.0.0.1", 60)
    mp.spawn(run_rank, (folder, requests("sampled"), store.port), nprocs=WORLD)
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD))
    assert first["tokens"] == world.truth("sampled")
    assert first["buckets"] == second["buckets"] and len(set(first["buckets"])) > 2


def test_a_step_is_one_upload_and_one_download(worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that could copy between host and device is counted, around a graph that copies nothing."""
    copies: list[str] = []
    rank = graphed(worlds["llama"].rank, ALL)
    worker = rank.engine.ranks.worker
    for rows, graph in worker._graphs.graphs.items():
        worker._graphs.graphs[rows] = SimpleNamespace(outputs=graph.outputs, replay=lambda: None)

    def counted(name: str):
        real = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: object, **options: object):
            copies.append(name)
            return real(self, *args, **options)

        return call

    engine = engine_over(rank, Setting(nodes=15))
    for i, prompt in enumerate(([3, 4], [5], [6, 7, 8])):
        engine.submit(request(f"{i}", prompt, max_tokens=9, temperature=0.0, ignore_eos=True))
    for graph in worker._graphs.graphs.values():
        for output in graph.outputs:
            output.zero_()
    engine.step()
    plan = engine.scheduler.schedule(99)
    assert plan.graph_rows and plan.num_draft_tokens.sum() > 3
    for name in ("to", "cpu", "cuda", "copy_", "item", "tolist", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    worker.execute(plan)
    assert copies == ["copy_", "cpu"]


@needs_triton
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mixtral", "qwen2-moe"])
def test_nothing_in_the_captured_part_waits_for_the_device(tmp_path, name: str) -> None:
    (logits, hidden, pairs), num_copies, kernels = fake_step(name, tmp_path)
    assert num_copies == 0
    assert logits.shape == (8, VOCAB) and hidden.shape[0] == 8 and pairs.shape == (8, 2)
    assert logits.device == pairs.device == GPU
    assert {*kernels} >= {"attend_tiles", "choose_in_parts"}
    assert kernels.count("multiply_tiles") == (4 if name in ROUTED else 0), "two products in each of two layers"


@needs_triton
def test_a_captured_prefix_layer_waits_for_nothing_either(tmp_path) -> None:
    (_, hidden, _), num_copies, kernels = fake_step("llama", tmp_path, has_prefix=True)
    assert num_copies == 0 and hidden.shape[0] == 8 and hidden.device == GPU
    assert kernels.count("attend_tiles") == 3, "two layers of the model, and the heads' own"


@needs_triton
def test_a_loop_over_experts_cannot_be_captured(tmp_path) -> None:
    """It asks the device which experts are needed: the test above can fail."""
    with pytest.raises((RuntimeError, DynamicOutputShapeException)) as caught:
        fake_step("mixtral", tmp_path, kernels=None)
    assert "nonzero" in str(caught.traceback[-1].statement)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs_say_what_launches_say_with_and_without_drafts(tmp_path, name: str) -> None:
    save_model(name, tmp_path)
    said = {}
    for graphs in ("auto", "off"):
        config = tiny_config(tmp_path, device="cuda", attention_backend="triton", cuda_graphs=graphs)
        rank = EngineRank(config, tmp_path)
        assert rank.facts["cuda_graphs"].startswith("steps of up to" if graphs == "auto" else "no: cuda_graphs: off")
        for nodes in (0, 15):
            found = decode(engine_over(rank, Setting(nodes=nodes)), requests("greedy"))
            said[graphs, nodes] = {each: output.token_ids for each, output in found.outputs.items()}
    assert all(answers == said["off", 0] for answers in said.values())
