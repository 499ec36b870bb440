"""Watched steps are the engine's steps."""

from pathlib import Path

import pytest

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.errors import ConfigError
from medusa_dist.heads_tools.trace_steps import watch
from medusa_dist.sampling_params import SamplingParams
from tests.support.counting_model import save_counting_model, save_heads, shifted
from tests.support.tiny_engine import decode, request, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
PARAMS = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
CHAIN = SpeculationConfig(mode="static", tree=[[0], [0, 0], [0, 0, 0]])


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> EngineRank:
    folder: Path = tmp_path_factory.mktemp("counting")
    save_counting_model(folder, shifted(1))
    save_heads(folder / "heads", [shifted(k + 1) for k in (1, 2, 3)])
    return EngineRank(tiny_config(folder), folder)


def test_traced_steps_have_root_accepted_nodes_and_tokens(rank: EngineRank) -> None:
    steps = list(watch(rank.engine, [4], PARAMS, CHAIN))
    assert [step.tokens for step in steps] == [(5,), (6, 7, 8, 9), (10, 11, 12, 13)]
    assert [step.root for step in steps] == [4, 5, 9]
    assert [step.nodes for step in steps] == [(), (0, 1, 2), (0, 1, 2)]
    assert len(steps[0].chances) == 0 and all(0 < chance < 1 for chance in steps[1].chances)


def test_traced_dynamic_trees_give_the_engines_own_answer(rank: EngineRank) -> None:
    steps = list(watch(rank.engine, [4], PARAMS, SpeculationConfig(mode="auto", max_nodes=4)))
    run = decode(rank.engine, [request("x", [4], max_tokens=9, temperature=0.0, ignore_eos=True)])
    assert tuple(t for step in steps for t in step.tokens) == run.outputs["x"].token_ids
    assert max(len(step.tree) for step in steps) == 4
    for step in steps:
        assert step.values == sorted(step.values, reverse=True)


def test_leaving_a_trace_early_frees_the_kv_blocks(rank: EngineRank) -> None:
    next(watch(rank.engine, [4], PARAMS, CHAIN))
    pool = rank.engine.scheduler.pool
    assert pool.num_free == pool.num_usable


def test_tree_deeper_than_the_heads_is_refused(rank: EngineRank) -> None:
    deep = SpeculationConfig(mode="static", tree=[[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(ConfigError, match="4 deep, but the model has 3 heads"):
        next(watch(rank.engine, [4], PARAMS, deep))
