"""tune-tree on a tiny model: what it chooses is legal, measured, and accepted by the config."""

from pathlib import Path

import pytest

from medusa_dist import LLM, SamplingParams
from medusa_dist.errors import ConfigError
from medusa_dist.heads_tools.tune_tree import CAPS, MAX_NODES, tune_tree
from medusa_dist.medusa.trees.tree import check_paths
from tests.support.tiny_tool_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [([5 + i, 6, 7], "") for i in range(4)]
PARAMS = SamplingParams(max_tokens=16, temperature=0.0)


def test_tune_tree_chooses_valid_measured_trees_per_batch_size(tmp_path: Path) -> None:
    save_llm(tmp_path)
    keys = {"speculation": {"mode": "auto", "max_nodes": MAX_NODES}, "max_running": 2, "kv_cache_tokens": 2048}
    with LLM(str(tmp_path), heads=str(tmp_path / "heads"), **keys) as llm:
        said: list[str] = []
        tuning = tune_tree(llm, PROMPTS, [2, 1], PARAMS, said.append)
        assert not llm.engine.has_work
    assert "recording: 4 of 4 answers" in said and said[-1] == "trying trees: 1 of 2 batch sizes, now 2"
    assert tuning.places <= 4 * 15 and [r.plain.batch for r in tuning.batches] == [1, 2]
    for result in tuning.batches:
        assert len(result.static) == MAX_NODES and [p.nodes for p in result.dynamic] == list(CAPS)
        best = result.best_static
        assert len(best.tree) <= best.point.nodes
        check_paths(best.tree, 2, 10)
        assert best.point.tokens_per_s == max(p.tokens_per_s for p in result.static)
        assert best.gain == pytest.approx(best.point.tokens_per_s / result.plain.tokens_per_s)
        assert best.measured > 0 and result.best_dynamic.measured > 0


def test_tune_tree_without_heads_is_a_config_error(tmp_path: Path) -> None:
    save_llm(tmp_path)
    with LLM(str(tmp_path), kv_cache_tokens=256) as llm, pytest.raises(ConfigError, match="this command needs heads"):
        tune_tree(llm, PROMPTS, [1], PARAMS, lambda _: None)
