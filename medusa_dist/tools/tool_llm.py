"""Opens an LLM for the tools: from a Serve config, or from command-line options.

Owns which config keys the tools use. Not here: the tools (heads_tools/, training/).
"""

from pathlib import Path
from typing import Any

from medusa_dist.config import Config, parse_config
from medusa_dist.errors import ConfigError
from medusa_dist.llm import LLM
from medusa_dist.llm_backend import OF_A_SERVICE
from medusa_dist.model.context_length import context_length
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.model.support_check import read_config as read_model_config
from medusa_dist.offline.arguments import SpeculationSpec
from medusa_dist.serve.config_file import read_serve_file


def read_config(path: Path, app: str | None, deployment: str) -> Config:
    """The args of one application in a Serve config. app: its name, required if there are several.

    Raises ConfigError.
    """
    configs = read_serve_file(path, deployment).configs
    if app is None and len(configs) > 1:
        raise ConfigError(f"{path} has several applications ({', '.join(configs)}); choose one with --app")
    name = app or next(iter(configs))
    if name not in configs:
        raise ConfigError(f"--app: {path} has no application {name!r}; choose one of {', '.join(configs)}")
    return configs[name]


def options_config(model: str, heads: str | None, dtype: str, ranks: int = 1) -> Config:
    """A config from command-line options. Fetches the model if it is not on this machine."""
    keys = {"model": model, "dtype": dtype, "heads": {"source": heads}, "tensor_parallel_size": ranks}
    return parse_config(keys | {"max_model_len": tool_context(model)})


def tool_context(model: str) -> int:
    """Tokens of context for a tool's short prompts and answers: 1024, or all that the model has."""
    return min(1024, context_length(read_model_config(model_folder(parse_config({"model": model})))).tokens)


def open_llm(config: Config, speculation: SpeculationSpec | None = None, looks_inside: bool = True, **keys: Any) -> LLM:
    """Open the model. speculation: None uses the config's own; keys override the config's.

    looks_inside: the caller needs the engine in this process, as most heads tools do. In this case, raises ConfigError
    if the config has several ranks.
    """
    if looks_inside and config.tensor_parallel_size != 1:
        raise ConfigError(
            f"tensor_parallel_size: the heads tools run in one process, and the config has "
            f"{config.tensor_parallel_size} ranks; use a copy of the config with 1"
        )
    options = config.model_dump(exclude=OF_A_SERVICE | {"speculation": True}) | keys
    return LLM(**options, speculation=config.speculation.model_dump() if speculation is None else speculation)
