"""The command line: `medusa-dist`.

Owns the words of the commands and what they print. Not here: what they do. Imports are inside the commands, so that
`medusa-dist --help` answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Exact speculative decoding with Medusa heads.")
console = Console(stderr=True, soft_wrap=True)


@app.callback()
def main() -> None:
    """Exact speculative decoding with Medusa heads, tensor-parallel, on Ray Serve."""


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Print our own errors as one message without a traceback, and exit 1."""
    from medusa_dist.errors import MedusaError

    try:
        yield
    except MedusaError as error:
        console.print("error:", style="bold red", end=" ")
        console.print(error.message, markup=False, highlight=False)
        sys.exit(1)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A Serve config; see serve_configs/.")],
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster to join. Without it, Ray is started on this machine."),
    ] = None,
) -> None:
    """Serve a model over HTTP, in the foreground, until Ctrl-C."""
    with _clear_errors():
        from medusa_dist.app import DEPLOYMENT
        from medusa_dist.serve.config_file import read_serve_file
        from medusa_dist.serve.launch import Launch, wait_for_signal

        file = read_serve_file(config, DEPLOYMENT)
        progress = Progress()
        launch = Launch(file, address, progress.say)
        try:
            with progress.status:
                seconds = launch.start()
            console.print(f"[green]ready[/] after {seconds:.1f} s")
            for name, one in file.configs.items():
                print(_greeting(file.url(name), one.name))
            print(_hints(launch.dashboard, started=address is None), flush=True)
            console.print(f"{wait_for_signal()}: open streams may finish; Ctrl-C again to cut them off")
        finally:
            launch.stop()
        console.print("ended")


class Progress:
    """What a long start is doing now: a spinner on a terminal, one line per change elsewhere."""

    def __init__(self) -> None:
        self.status = console.status("")
        self._last = ""

    def say(self, text: str) -> None:
        """Show it."""
        if console.is_terminal:
            self.status.update(f"[bold]{escape(text)}")
        elif text != self._last:
            console.print(text, markup=False, highlight=False)
        self._last = text


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
