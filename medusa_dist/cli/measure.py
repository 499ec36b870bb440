"""The command that measures: bench.

Owns its options and help texts; main.py adds it to the CLI. Not here: the measurements (bench/). Imports are inside the
commands, so that `medusa-dist --help` stays fast.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from medusa_dist.cli.options import (
    DtypeOption,
    HeadsOption,
    ModelOption,
    SpeculationOption,
    clear_errors,
    console,
    parse_sizes,
    parse_speculation,
    parse_temperatures,
)

if TYPE_CHECKING:
    from medusa_dist.bench.bench import Setting
    from medusa_dist.bench.peers import PeerOptions

app = typer.Typer()

PromptsOption = Annotated[
    Path | None, typer.Option(help="One prompt per line, or .jsonl; default: the shipped prompts.")
]
QuantizationOption = Annotated[str, typer.Option(help="none, or int8: weights in 8 bits (docs/quantization.md).")]
PeerOption = Annotated[
    list[str] | None,
    typer.Option(help="Also compare with this engine: transformers, vllm, llama.cpp, or unquantized (ours)."),
]
NullModelOption = Annotated[
    bool,
    typer.Option(
        "--null-model",
        help="Measure the engine's own time instead, with a model that does nothing: --pairs runs of --max-tokens "
        "steps, with --speculation draft tokens (a number; default 8) in each sequence.",
    ),
]
_MOST_NULL_NODES = 32  # the null heads have guesses for so many


@app.command()
def bench(
    context: typer.Context,
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    speculation: SpeculationOption = "auto",
    batches: Annotated[str, typer.Option("--batches", "--batch", help="Batch sizes, separated by commas.")] = "1,4,16",
    temperatures: Annotated[str, typer.Option(help="Temperatures, separated by commas; 0 is greedy.")] = "0",
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of runs, with and without drafts, per batch size.")] = 10,
    waves: Annotated[int, typer.Option(min=1, help="Prompts per run / batch size, for batches above 1.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 64,
    prompts: PromptsOption = None,
    peer: PeerOption = None,
    peer_python: Annotated[str | None, typer.Option(help="Python executable of the environment with vLLM.")] = None,
    peer_gguf: Annotated[Path | None, typer.Option(help="The same model as a GGUF file, for llama.cpp.")] = None,
    peer_batches: Annotated[str, typer.Option(help="Batch sizes for peers that batch.")] = "8,32",
    exact_phases: Annotated[bool, typer.Option(help="On a GPU: synchronise after each phase. Slower.")] = False,
    null_model: NullModelOption = False,
    output: Annotated[Path | None, typer.Option(help="Write the full report to this file, as JSON.")] = None,
) -> None:
    """Measure the speed-up of speculation on this machine: the same prompts with and without drafts, alternating."""
    with clear_errors():
        if null_model:
            _bench_engine(context, NullOptions(batches, speculation, pairs, max_tokens, output))
            return
        from medusa_dist.bench.bench import PROMPTS, Setting
        from medusa_dist.bench.peers import PeerOptions

        peer_sizes = tuple(parse_sizes(peer_batches, "--peer-batches"))
        options = PeerOptions(tuple(peer or ()), peer_python, peer_sizes, peer_gguf)
        setting = Setting(
            batches=parse_sizes(batches, "--batches"),
            temperatures=parse_temperatures(temperatures),
            pairs=pairs,
            waves=waves,
            max_tokens=max_tokens,
            prompts=prompts or PROMPTS,
            exact_phases=exact_phases,
        )
        asked = {"heads": heads, "dtype": dtype, "quantization": quantization}
        _bench_model(model, asked | {"speculation": parse_speculation(speculation)}, setting, options, output)


def _bench_model(
    model: str, asked: dict[str, Any], setting: "Setting", peers: "PeerOptions", output: Path | None
) -> None:
    """asked: keyword arguments of LLM."""
    from medusa_dist.bench.bench import bench as run
    from medusa_dist.bench.peers import open_peers
    from medusa_dist.bench.report import as_json, as_tables
    from medusa_dist.llm import LLM
    from medusa_dist.tools.progress import ProgressDisplay
    from medusa_dist.tools.tool_llm import tool_context

    sizes = {"max_running": max(*setting.batches, *peers.sizes), "max_model_len": tool_context(model)}
    with (
        ProgressDisplay(console, "loading") as progress,
        LLM(model, **(asked | sizes)) as llm,
        open_peers(peers, llm, progress.say) as opened,
    ):
        report = run(llm, setting, opened, progress.say)
    _show(as_tables(report), as_json(report), output)


class NullOptions(NamedTuple):
    """The options that go with --null-model."""

    batches: str
    speculation: str
    pairs: int
    max_tokens: int
    output: Path | None


def _bench_engine(context: typer.Context, options: NullOptions) -> None:
    from medusa_dist.bench.null_bench import NullSetting, null_bench, null_json, null_table
    from medusa_dist.errors import ConfigError
    from medusa_dist.tools.progress import ProgressDisplay

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    for name in sorted(given - {*options._fields, "null_model"}):
        raise ConfigError(f"--{name.replace('_', '-')} has no meaning with --null-model; leave it out")
    nodes = 8 if options.speculation == "auto" else parse_speculation(options.speculation)
    if not isinstance(nodes, int) or not 1 <= nodes <= _MOST_NULL_NODES:
        raise ConfigError(f"--speculation: with --null-model it is a number of draft tokens, 1 to {_MOST_NULL_NODES}")
    setting = NullSetting(parse_sizes(options.batches, "--batches"), nodes, options.pairs, options.max_tokens)
    with ProgressDisplay(console, "starting") as progress:
        report = null_bench(setting, progress.say)
    _show([null_table(report)], null_json(report), options.output)


def _show(tables: list[Table], text: str, output: Path | None) -> None:
    screen = Console(width=None if sys.stdout.isatty() else 160)  # no width limit in a file or pipe
    for table in tables:
        screen.print(table)
    if output is not None:
        output.write_text(text + "\n")
