"""The cost curve as it is measured: which passes, which of their times count, and what of it is drafting."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medusa_dist.config import Config
from medusa_dist.engine.runner.plan import Op, Plan
from medusa_dist.engine.startup import step_cost as measure
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.step_cost import measure_step_cost
from medusa_dist.medusa.trees.budget import StepCost
from tests.support.tiny_engine import save_model, tiny_config

CONTEXT = 128


def seconds_of(rows: int) -> float:
    return 1.0 + rows / 100


@dataclass
class FakeRanks:
    """A clock that each pass moves on: twice as far the first time at a size, which warms up, and with an echo of
    other work on the machine in every other pass after that."""

    num_blocks: int = 65
    generation: int = 4
    now: float = 0.0
    disturbed: range = range(0)  # passes that take three times as long
    plans: list[Plan] = field(default_factory=list)
    said: list[tuple[Op, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pool = SimpleNamespace(num_blocks=self.num_blocks)
        self.worker = SimpleNamespace(
            pool=pool, buckets=(4, 16, 48), model=SimpleNamespace(hidden_size=8, dtype=torch.float32)
        )

    def perf_counter(self) -> float:
        return self.now

    def next_step(self) -> int:
        return len(self.plans) + len(self.said)

    def verify(self, plan: Plan) -> None:
        before = sum(other.token_ids.size == plan.token_ids.size for other in self.plans)
        factor = 3.0 if len(self.plans) in self.disturbed else 1.0
        self.plans.append(plan)
        self.now += factor * seconds_of(plan.token_ids.size) * (2.0 if before == 0 else 1.5 if before % 2 else 1.0)

    def announce(self, op: Op) -> None:
        self.said.append((op, len(self.plans)))


class FakeDrafter:
    """0.25 seconds, and 0.0625 for each sequence."""

    def measure(self, num_sequences: int, dtype: torch.dtype) -> float:
        assert dtype == torch.float32
        return 0.25 + num_sequences / 16


def config(**keys: object) -> Config:
    return tiny_config(Path("nowhere"), **({"max_running": 8, "max_batched_tokens": 256} | keys))


def measured(
    ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch, drafter: FakeDrafter | None, longest: int = 4096, **keys: object
) -> StepCost | None:
    monkeypatch.setattr(measure, "time", ranks)
    cost = measure_step_cost(ranks, config(**keys), longest, {} if drafter is None else {"heads": drafter})
    assert ranks.said == [(Op.READY, len(ranks.plans))]  # the followers' wait ends, once and after the last pass
    return cost


def test_measured_curve_is_the_fastest_pass_of_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = measured(FakeRanks(), monkeypatch, FakeDrafter())
    assert cost.rows == (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    assert cost.seconds == pytest.approx([seconds_of(rows) for rows in cost.rows])
    assert (cost.draft_s, cost.draft_s_each) == pytest.approx((0.25, 1 / 16))
    assert cost.drafting(3) == pytest.approx(0.4375)


@pytest.mark.parametrize("begin", range(0, 55, 5))
def test_measured_curve_ignores_a_disturbance_of_20_passes(monkeypatch: pytest.MonkeyPatch, begin: int) -> None:
    cost = measured(FakeRanks(disturbed=range(begin, begin + 20)), monkeypatch, FakeDrafter())
    assert cost.seconds == pytest.approx([seconds_of(rows) for rows in cost.rows])


@pytest.mark.parametrize(
    ("blocks", "longest", "keys", "largest"),
    [
        (65, 4096, {"max_batched_tokens": 50}, 48),
        (65, 4096, {"max_running": 2}, 32),  # two sequences of a root and 15 nodes
        (65, 4096, {"max_running": 1, "speculation": {"mode": "static", "tree": [[i] for i in range(9)]}}, 8),
        (3, 4096, {}, 32),  # two blocks of 16 columns
        (65, 20, {}, 16),
    ],
)
def test_measured_rows_end_at_what_config_and_cache_allow(
    monkeypatch: pytest.MonkeyPatch, blocks: int, longest: int, keys: dict, largest: int
) -> None:
    ranks = FakeRanks(blocks)
    assert measured(ranks, monkeypatch, FakeDrafter(), longest, **keys).rows[-1] == largest
    for plan in ranks.plans:
        end = int(plan.num_computed_tokens[0]) + plan.token_ids.size
        assert end <= min((blocks - 1) * 16, longest) and plan.blocks.max() <= blocks - 1
        assert 16 * plan.blocks.size >= end


def test_room_for_a_single_size_gives_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(FakeRanks(), monkeypatch, FakeDrafter(), 5) is None
    assert measured(FakeRanks(), monkeypatch, FakeDrafter(), 3) is None


def test_without_heads_two_passes_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = FakeRanks()
    assert measured(ranks, monkeypatch, None) is None
    assert [plan.token_ids.size for plan in ranks.plans] == [4, 6]


def test_each_measured_pass_is_a_root_and_a_chain_after_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = FakeRanks()
    measured(ranks, monkeypatch, FakeDrafter())
    assert [plan.step for plan in ranks.plans] == list(range(len(ranks.plans)))
    for plan in ranks.plans:
        assert (plan.op, plan.generation) == (Op.STEP, 4)
        assert (plan.num_computed_tokens.tolist(), plan.num_new_tokens.tolist(), plan.needs_logits.tolist()) == (
            [CONTEXT],
            [1],
            [1],
        )
        size = plan.token_ids.size
        assert plan.graph_rows == next((bucket for bucket in (4, 16, 48) if bucket >= size), 0)
        assert plan.num_draft_tokens.tolist() == [size - 1] and plan.parents.tolist() == list(range(-1, size - 2))
        assert len(set(plan.blocks.tolist())) == plan.blocks.size and 0 not in plan.blocks


def test_measuring_leaves_the_engine_without_work_and_blocks_free(tmp_path: Path, one_thread: None) -> None:
    save_model("llama", tmp_path)
    engine = EngineRank(tiny_config(tmp_path), tmp_path).engine
    cost = engine.policy.measured_cost
    assert cost.rows[0] == 4 and cost.rows[-1] == 64 and all(seconds > 0 for seconds in cost.seconds)
    pool = engine.scheduler.pool
    assert pool.num_free == pool.num_usable and not engine.has_work
