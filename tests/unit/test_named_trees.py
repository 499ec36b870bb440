"""Named trees: the published paths, their laws, and their way through the config into an engine."""

from pathlib import Path

import pytest

from medusa_dist.config import parse_config
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K
from medusa_dist.medusa.trees.tree import check_paths, order_paths
from medusa_dist.named_trees import NAMED_TREES
from medusa_dist.offline.arguments import speculation_keys
from tests.support.tiny_engine import VOCAB, Setting, decode, engine_over, request, save_model, tiny_config
from tests.support.tiny_heads import save_heads

# As published, path by path; ranks as digits.
MC_SIM = """0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 40 21 004 005
0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"""


def test_mc_sim_7b_63_is_the_published_tree() -> None:
    published = {tuple(map(int, path)) for path in MC_SIM.split()}
    assert len(published) == 63 and set(NAMED_TREES["mc_sim_7b_63"]) == published


@pytest.mark.parametrize("name", NAMED_TREES)
def test_named_tree_is_valid_and_has_its_number_of_nodes(name: str) -> None:
    tree = NAMED_TREES[name]
    check_paths(tree, num_heads=4, num_guesses=DRAFT_TOP_K)
    assert len(tree) == (4 if name == "chain4" else 63)
    assert len(set(tree)) == len(tree) and order_paths(tree)[0] == (0,)


def test_config_resolves_tree_names_and_refuses_unknown_ones() -> None:
    keys = speculation_keys("mc_sim_7b_63")
    assert keys == {"mode": "static", "tree": "mc_sim_7b_63"}
    config = parse_config({"model": "x", "speculation": keys})
    assert config.speculation.tree == NAMED_TREES["mc_sim_7b_63"] and config.speculation.most_nodes == 63
    assert parse_config(config.model_dump()) == config
    with pytest.raises(ConfigError, match=r"speculation\.tree: unknown tree 'mc_sim'; use one of chain4, mc_sim"):
        parse_config({"model": "x", "speculation": speculation_keys("mc_sim")})
    with pytest.raises(ConfigError, match="not allowed with any other mode"):
        parse_config({"model": "x", "speculation": {"tree": "chain4"}})


@pytest.mark.usefixtures("one_thread")
def test_engine_serves_a_named_tree_and_refuses_it_with_too_few_heads(tmp_path: Path) -> None:
    hidden = save_model("llama", tmp_path).config.hidden_size
    named = tiny_config(tmp_path, speculation=speculation_keys("mc_sim_7b_63"))
    with pytest.raises(ConfigError, match=r"path \[0, 0, 0, 0\] is 4 deep, but the model has 3 heads"):
        EngineRank(named, tmp_path)
    save_heads(tmp_path / "heads", hidden, VOCAB, num_heads=4)
    rank = EngineRank(named, tmp_path)
    assert "at most 63 draft tokens" in rank.facts["speculation"]
    each = [request(f"r{i}", range(3, 12 + i), seed=i, max_tokens=20, ignore_eos=True) for i in range(2)]
    plain = decode(engine_over(rank, Setting()), each)
    assert rank.engine is not None
    drafted = decode(rank.engine, each)
    assert {n: o.token_ids for n, o in drafted.outputs.items()} == {n: o.token_ids for n, o in plain.outputs.items()}
    assert drafted.accepted > 0 and rank.engine.policy.config.tree == NAMED_TREES["mc_sim_7b_63"]
    assert drafted.drafted / sum(output.stats.num_steps for output in drafted.outputs.values()) > 25
