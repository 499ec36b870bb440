"""Shared CLI parts: the console, error output, options used by several commands.

Owns these parts. Not here: the commands (main.py, heads.py, see.py, train.py). Imports are inside functions, so that
`medusa-dist --help` stays fast.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console(stderr=True, soft_wrap=True)

ModelOption = Annotated[str, typer.Option(help="Hub id, folder, GGUF file, or demo:smollm2-135m.")]
HeadsOption = Annotated[str | None, typer.Option(help="Folder or hub id of a head file; the demo model has its own.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto.")]
SpeculationOption = Annotated[
    str, typer.Option(help="auto, off, heads or lookup alone, a number of draft tokens per step, or a named tree.")
]

ConfigArgument = Annotated[Path | None, typer.Argument(help="A Serve config; replaces --model, --heads and --dtype.")]
AppOption = Annotated[str | None, typer.Option("--app", help="The application, if the config has several.")]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print the project's own errors as one message without a traceback, and exit with 1."""
    from medusa_dist.errors import MedusaError

    try:
        yield
    except MedusaError as error:
        console.print("error:", style="bold red", end=" ")
        console.print(error.message, markup=False, highlight=False)
        sys.exit(1)


def note(text: str) -> None:
    """Print one line to the terminal, without markup."""
    console.print(text, markup=False, highlight=False)


def tool_config(config: Path | None, app_name: str | None, model: str, heads: str | None, dtype: str) -> Any:
    """The config of a tool: from a file, or from options."""
    from medusa_dist.app import DEPLOYMENT
    from medusa_dist.tools.tool_llm import options_config, read_config

    return options_config(model, heads, dtype) if config is None else read_config(config, app_name, DEPLOYMENT)


def parse_speculation(text: str) -> Any:
    """Parse LLM's short forms of `speculation`."""
    from medusa_dist.errors import ConfigError
    from medusa_dist.named_trees import NAMED_TREES

    if text in ("auto", "off", "heads", "lookup", *NAMED_TREES):
        return text
    if text.isdigit():
        return int(text)
    known = ", ".join(NAMED_TREES)
    raise ConfigError(
        f"--speculation takes auto, off, heads, lookup, a number of draft tokens, or a tree ({known}), not {text!r}"
    )


def parse_sizes(text: str, option: str) -> list[int]:
    """Parse comma-separated batch sizes."""
    from medusa_dist.errors import ConfigError

    if not all(part.strip().isdigit() and int(part) > 0 for part in text.split(",")):
        raise ConfigError(f"{option} takes positive numbers separated by commas, not {text!r}")
    return [int(part) for part in text.split(",")]


def parse_temperatures(text: str) -> list[float]:
    """Parse comma-separated temperatures."""
    from medusa_dist.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--temperatures takes numbers separated by commas, not {text!r}") from None
