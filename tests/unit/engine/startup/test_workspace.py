"""The worst step, and what it needs: run for real on a CPU, with a meter of our own."""

from pathlib import Path

import pytest
import torch

from medusa_dist.config import parse_config
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.phase_timer import PhaseTimer
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.worker import Scores, Worker
from medusa_dist.engine.startup.workspace import PeakMeter, profile_blocks, workspace_bytes, worst_plan
from medusa_dist.engine.state.block_pool import blocks_for
from medusa_dist.model.load import load_model
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.registry import BACKENDS
from medusa_dist.ops.tp_group import TPGroup
from tests.support.tiny_models import save_tiny

CPU = torch.device("cpu")


class Meter(PeakMeter):
    """Says a thousand bytes, and that it was started first."""

    def __init__(self) -> None:
        self.started = 0

    def start(self) -> None:
        self.started += 1

    def read(self) -> int:
        assert self.started == 1
        return 1000


class Recorder(Worker):
    """A worker that remembers what it was asked and what came of it."""

    def execute(self, plan: Plan, clock: PhaseTimer | None = None) -> Scores | None:
        self.plan, self.scores = plan, super().execute(plan, clock)
        return self.scores


def config(**keys: object):
    return parse_config({"model": "x", "max_running": 4, "max_batched_tokens": 48} | keys)


@pytest.fixture
def ranks(tmp_path: Path) -> RankGroup:
    save_tiny("llama", tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, device=CPU, parallel=TPGroup())
    pool = KVCache.allocate(model.num_layers, model.num_kv_heads, model.head_dim, 9, model.dtype, CPU)
    attention = BACKENDS["exact"](model.head_dim, model.num_heads // model.num_kv_heads, model.dtype)
    return RankGroup(Recorder(model, pool, 4, 16, attention), None, 0)


def test_worst_step_runs_with_all_rows_logits_and_prompt_logprobs(ranks: RankGroup) -> None:
    speculation = {"max_nodes": 7}
    got = workspace_bytes(ranks, config(speculation=speculation), [], Meter())
    worker = ranks.worker
    assert isinstance(worker, Recorder) and worker.scores is not None
    plan, wanted = worker.plan, 4 * (1 + 7)
    assert plan.token_ids.size == 48 == int(plan.num_new_tokens[0] + plan.num_draft_tokens[0])
    assert int(plan.num_computed_tokens[0]) == 8 * 16 - 48  # behind all the context that the pool has room for
    assert int(plan.num_draft_tokens[0]) + 1 == wanted
    assert sorted(worker.scores.full_logits) == list(range(wanted))
    assert (
        worker.scores.prompt_logprobs is not None and worker.scores.prompt_logprobs.logprobs.size == 48 - wanted
    )  # all other rows
    assert got == 1100 + 4 * 4 * worker.model.vocab_size * 4


def test_worst_plan_is_bounded_by_max_batched_tokens(ranks: RankGroup) -> None:
    plan = worst_plan(ranks, config(max_batched_tokens=16, speculation={"max_nodes": 63}))
    assert (int(plan.num_new_tokens[0]), int(plan.num_draft_tokens[0]), plan.parents.size) == (1, 15, 15)


def test_workspace_includes_drafting_for_max_running_sequences(
    ranks: RankGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    drafter = object.__new__(HeadDrafter)
    monkeypatch.setattr(HeadDrafter, "measure", lambda _self, count, *_args, **_options: calls.append(count))
    workspace_bytes(ranks, config(), [drafter], Meter())
    assert calls == [4]


def test_profile_pool_is_bounded_by_need_and_free_memory() -> None:
    small = config(speculation={"max_nodes": 7})
    assert profile_blocks(small, 1000, 10, 10_000_000) == blocks_for(1007)
    assert profile_blocks(small, 1000, 10, 1000) == 25  # a quarter of what is free
    assert profile_blocks(small, 1000, 10, 0) == 3  # but a step's rows have a place
