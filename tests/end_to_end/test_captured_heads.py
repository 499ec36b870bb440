"""Heads that follow all rows, in captured steps with a plain call in the place of the graph: what they draft, and that
it is what they draft launch by launch, to the bit."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from medusa_dist.engine.runner.graph_buckets import EAGER, graph_buckets
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.request import Request
from tests.support.graphed_rank import GraphedRank, graphed, poison
from tests.support.tiny_eagle3 import save_checkpoint
from tests.support.tiny_engine import VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config
from tests.support.tiny_heads import save_heads

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {
    "plain": Setting(nodes=15),
    "chunks": Setting(nodes=15, max_batched_tokens=24),
    "preemption": Setting(nodes=15, num_blocks=6),
}
Drafted = dict[tuple[str, int], tuple[torch.Tensor, Candidates | None]]


def requests() -> list[Request]:
    """Two of them share the first blocks of their prompts."""
    rng = random.Random(2)
    fields = {"max_tokens": 20, "ignore_eos": True}
    shared = [rng.randrange(VOCAB) for _ in range(2 * BLOCK_TOKENS + 3)]
    return [
        request("greedy", [5, 9, 3], temperature=0.0, **fields),
        request("first", [*shared, 7, 1], seed=4, temperature=0.8, **fields),
        request("second", [*shared, 2], temperature=0.0, **fields),
        request("whole", [7], seed=-2, top_p=0.9, **fields),
    ]


def eagle3(folder: Path) -> EngineRank:
    """Taps two layers of three."""
    save_model("llama", folder)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.num_hidden_layers = 3
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tapped = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]}}
    save_checkpoint(folder / "eagle", "specforge", hidden_size=config.hidden_size, **tapped)
    return EngineRank(tiny_config(folder, heads={"source": str(folder / "eagle"), "allow_untrained": True}), folder)


def prefix_layer(name: str, folder: Path) -> EngineRank:
    """Its heads have the model's shape, as captured attention demands."""
    config = save_model(name, folder).config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = {"num_heads": config.num_attention_heads, "num_kv_heads": config.num_key_value_heads, "head_dim": width}
    shape = {"form": "sequential", "width": 24, "tapped_layers": (-1, 0), "prefix": heads | {"inner": 20}}
    save_heads(folder / "heads", config.hidden_size, VOCAB, 0.2, **shape)
    only = {"mode": "auto", "max_nodes": 15, "drafters": ["heads"]}
    return EngineRank(tiny_config(folder, speculation=only), folder)


class Heads:
    """An engine whose steps are captured, and can be launched one by one."""

    def __init__(self, rank: EngineRank) -> None:
        self.rank: GraphedRank = graphed(rank, graph_buckets(8, 15))
        self.worker = self.rank.engine.ranks.worker

    def run(self, setting: Setting, captured: bool) -> tuple[Run, Drafted, set[int]]:
        """-> what is said, what each draft started from and drafted, and the buckets of the steps."""
        buckets, drafted = self.worker.buckets, Drafted()
        used: set[int] = set()
        self.worker.buckets = buckets if captured else ()
        engine = engine_over(self.rank, setting)
        self.worker.buckets = buckets
        verify = engine.ranks.verify

        def poisoned(plan: Plan, *clock: object) -> Scores:
            used.add(plan.graph_rows)
            poison(self.worker)
            return verify(plan, *clock)

        if "heads" in engine.drafters:
            engine.drafters["heads"] = Recorded(engine.drafters["heads"], drafted)
        engine.ranks.verify = poisoned
        try:
            return decode(engine, requests(), arrivals=[0, 1, 9, 9]), drafted, used
        finally:
            engine.ranks.verify = verify


class Recorded:
    """A drafter, and what it drafts for each sequence and number of tokens."""

    def __init__(self, drafter, drafted: Drafted) -> None:
        self._drafter, self._drafted = drafter, drafted

    def __getattr__(self, name: str):
        return getattr(self._drafter, name)

    def draft(self, results: list[StepResult], scores: Scores) -> list[Candidates | None]:
        starts = [scores.hidden[result.last_row].clone() for result in results]
        found = self._drafter.draft(results, scores)
        for result, start, candidates in zip(results, starts, found, strict=True):
            if candidates is not None:
                sequence = result.sequence
                self._drafted[sequence.request.request_id, len(sequence.tokens)] = start, candidates
        return found


MAKERS = {
    "eagle3": eagle3,
    "prefix of llama": lambda folder: prefix_layer("llama", folder),
    "prefix of gemma2": lambda folder: prefix_layer("gemma2", folder),
}


@pytest.fixture(scope="module", params=MAKERS)
def heads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Heads:
    return Heads(MAKERS[request.param](tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("name", SETTINGS)
def test_captured_steps_draft_what_launches_draft(heads: Heads, name: str) -> None:
    setting = SETTINGS[name]
    off, _, _ = heads.run(replace(setting, nodes=0), captured=False)
    launched, wanted, none = heads.run(setting, captured=False)
    captured, found, used = heads.run(setting, captured=True)
    assert none == {EAGER} and EAGER not in used and len(used) > 1
    tokens = {id: output.token_ids for id, output in off.outputs.items()}
    assert tokens == {id: output.token_ids for id, output in captured.outputs.items()}
    assert captured.accepted > 0 and (captured.num_preemptions > 0) == (name == "preemption")
    assert found.keys() == wanted.keys() and len(found) > 20
    for place, (start, candidates) in found.items():
        expected, others = wanted[place]
        assert torch.equal(start, expected), place
        for field in ("tokens", "confidences"):
            assert (getattr(candidates, field) == getattr(others, field)).all(), (place, field)
    assert launched.accepted == captured.accepted
