"""Which tree explain draws."""

import pytest

from medusa_dist.config import parse_config
from medusa_dist.errors import ConfigError
from medusa_dist.heads_tools.explain_config import accuracies_of, tree_of
from medusa_dist.named_trees import NAMED_TREES

PLAIN = parse_config({"model": "demo:smollm2-135m"})


def test_tree_is_chosen_by_name_or_by_paths() -> None:
    name, speculation = tree_of(PLAIN, "mc_sim_7b_63", 7)
    assert name == "mc_sim_7b_63" and speculation.tree == NAMED_TREES[name]
    assert tree_of(PLAIN, "[[0], [0, 1]]", 7)[1].tree == ((0,), (0, 1))


def test_without_a_tree_option_the_configs_or_dynamic_trees_are_drawn() -> None:
    own = parse_config({"model": "x", "speculation": {"mode": "static", "tree": [[0]]}})
    assert tree_of(own, None, 7)[1] == own.speculation
    _, speculation = tree_of(PLAIN, None, 5)
    assert (speculation.mode, speculation.max_nodes, speculation.tree) == ("auto", 5, None)


@pytest.mark.parametrize(
    ("tree", "error"),
    [("oak", "unknown tree 'oak'"), ("[[0", "not a list of paths"), ("[[-1, [2]]]", "speculation.tree")],
)
def test_invalid_tree_option_is_refused(tree: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        tree_of(PLAIN, tree, 7)


def test_accuracies_of_the_demo_heads_rise_with_the_number_of_guesses() -> None:
    assert accuracies_of(parse_config({"model": "x"})) == ()
    found = accuracies_of(PLAIN)
    assert len(found) > 1 and all(list(each) == sorted(each) and 0 < each[0] < 1 for each in found)
