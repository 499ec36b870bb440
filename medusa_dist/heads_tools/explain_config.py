"""Options of `medusa-dist explain`: which tree to draw, and the accuracies of its heads.

Owns the parsing of its options. Not here: the drawing (explain.py).
"""

import json

from medusa_dist.config import Config, SpeculationConfig, parse_config
from medusa_dist.engine.startup.find_heads import find_heads
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.heads.heads_file import DESCRIPTION, read_description


def tree_of(config: Config, tree: str | None, num_nodes: int) -> tuple[str, SpeculationConfig]:
    """A display name, and the speculation config to show: the tree given, else the config's own static tree, else
    dynamic trees of num_nodes nodes. Raises ConfigError for an invalid tree."""
    if tree is not None:
        paths: object = tree
        if tree.lstrip().startswith("["):
            try:
                paths = json.loads(tree)
            except json.JSONDecodeError as error:
                raise ConfigError(f"--tree is not a list of paths such as [[0], [1], [0, 0]]: {error}") from None
        keys = {"mode": "static", "tree": paths}
        checked = parse_config({"model": config.model, "speculation": keys}).speculation
        return tree if isinstance(paths, str) else "--tree", checked
    if config.speculation.tree is not None:
        return "speculation.tree", config.speculation
    return f"the {num_nodes} most likely", SpeculationConfig(mode="auto", max_nodes=num_nodes)


def accuracies_of(config: Config) -> tuple[tuple[float, ...], ...]:
    """The accuracies in heads.json; () without heads, and for published ones, which record none."""
    folder = find_heads(config)
    recorded = folder is not None and (folder / DESCRIPTION).is_file()
    return read_description(folder).top_accuracies if folder is not None and recorded else ()
