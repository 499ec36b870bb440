"""Commands that show what happens: generate, explain, top.

Owns their options and help texts; main.py adds them to the CLI. Not here: their implementation (heads_tools/, top/).
Imports are inside the commands, so that `medusa-dist --help` stays fast.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medusa_dist.cli.options import (
    AppOption,
    DtypeOption,
    HeadsOption,
    ModelOption,
    SpeculationOption,
    clear_errors,
    console,
    note,
    parse_speculation,
    tool_config,
)

app = typer.Typer()

STEP_LOG = ".jsonl"
HtmlOption = Annotated[Path | None, typer.Option(help="Also write the drawing to this file, as HTML.")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "float32",
    speculation: SpeculationOption = "auto",
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens of the answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    chat: Annotated[bool, typer.Option(help="Use the model's chat template, or complete the plain text.")] = True,
    tree: Annotated[bool, typer.Option(help="Draw the step in which most drafts were accepted.")] = True,
) -> None:
    """Stream one answer to the terminal, with each token coloured by the head that guessed it."""
    with clear_errors():
        from medusa_dist.heads_tools.generate import generate as run
        from medusa_dist.llm import LLM
        from medusa_dist.sampling_params import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        with console.status("loading"):
            llm = LLM(model, heads=heads, dtype=dtype, speculation=parse_speculation(speculation))
        with llm:
            run(llm, prompt, params, chat=chat, tree=tree, console=Console(soft_wrap=True))


@app.command()
def explain(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG|STEPS.jsonl]",
            help="A Serve config, in place of --model, --heads and --dtype; or a file that the key step_log wrote.",
        ),
    ] = None,
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "float32",
    app_name: AppOption = None,
    prompt: Annotated[str | None, typer.Option(help="Draw the steps of the answer to this prompt.")] = None,
    tree: Annotated[
        str | None, typer.Option(help="A static tree: a name, or paths such as [[0], [1], [0, 0]].")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=255, help="Draft tokens per step, or nodes of the drawn tree.")] = 7,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 24,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    step: Annotated[
        int | None, typer.Option(min=0, help="Draw this step of a step log. Default: the best and the worst.")
    ] = None,
    html: HtmlOption = None,
) -> None:
    """Draw candidate trees: a static tree with its predicted gain, or the trees of real steps and what was accepted.
    Of a step log, also where drafts were cut and which heads earned their keep."""
    with clear_errors():
        from medusa_dist.errors import ConfigError
        from medusa_dist.heads_tools import explain as job
        from medusa_dist.heads_tools.explain_config import accuracies_of, tree_of
        from medusa_dist.heads_tools.steps.page import static_picture
        from medusa_dist.sampling_params import SamplingParams

        if source is not None and source.suffix == STEP_LOG:
            if prompt is not None or tree is not None:
                raise ConfigError(f"--prompt and --tree cannot be combined with a step log ({source})")
            _explain_log(source, step, html)
            return
        if step is not None:
            raise ConfigError("--step is a step of a step log; name its file (steps.jsonl)")
        checked = tool_config(source, app_name, model, heads, dtype)
        name, speculation = tree_of(checked, tree, nodes)
        if prompt is None:
            accuracies = accuracies_of(checked)
            paths = speculation.tree or job.likeliest(accuracies, nodes)
            Console().print(job.draw_static(paths, accuracies, name))
            _write(html, name, [static_picture(paths, accuracies, name)])
            return
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        _explain_prompt(prompt, checked, params, speculation, html)


def _explain_prompt(prompt: str, config: Any, params: Any, speculation: Any, html: Path | None) -> None:
    from medusa_dist.heads_tools.explain import show_steps, summary
    from medusa_dist.heads_tools.record_drafts import engine_with_heads
    from medusa_dist.heads_tools.steps.page import step_picture
    from medusa_dist.heads_tools.trace_steps import watch
    from medusa_dist.tools.prompts import prompt_ids
    from medusa_dist.tools.tool_llm import open_llm

    with console.status("loading"), open_llm(config, {"mode": "auto"}) as llm:
        ids = prompt_ids(llm, prompt)
        steps = list(watch(engine_with_heads(llm), ids, params, speculation))
        show_steps(steps, llm.tokenizer, Console())
        pictures = [step_picture(one, llm.tokenizer, f"step {i}") for i, one in enumerate(steps[1:], start=2)]
        _write(html, prompt, pictures, [summary(steps)])


@app.command()
def top(
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT or URL of a service or of a metrics port. Default: the metrics port of this machine, 8080."
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="Print lines, so many for each model, and leave.")
    ] = None,
) -> None:
    """Live numbers of a service: requests, speed, acceptance by head, time by phase. Lines if this is no terminal."""
    with clear_errors():
        from medusa_dist.config_parts.http import API_KEY_VARIABLE
        from medusa_dist.top.reading import Source, url_of
        from medusa_dist.top.run import keys, pause, print_lines, watch

        source = Source(url_of(address), os.environ.get(API_KEY_VARIABLE), time.monotonic)
        try:
            if count is None and sys.stdin.isatty() and sys.stdout.isatty():
                with keys() as wait:
                    watch(source, Console(), interval, wait)
            else:
                print_lines(source, Console(), interval, pause, count)
        except KeyboardInterrupt:
            note("stopped")
        finally:
            source.close()


def _explain_log(path: Path, step: int | None, html: Path | None) -> None:
    from medusa_dist.heads_tools.steps.show import LoggedSteps, log_pictures, show_log, tables, tokenizer_of

    with console.status("reading"):
        log = LoggedSteps(path, step)
        tokenizer = tokenizer_of(log.model, note)
    show_log(log, tokenizer, Console())
    _write(html, path.name, log_pictures(log, tokenizer), tables(log))


def _write(html: Path | None, title: str, pictures: list[Any], tables: list[Any] | tuple[()] = ()) -> None:
    from medusa_dist.heads_tools.steps.page import as_html, write_html

    if html is not None:
        write_html(html, as_html(title, pictures, tables))
        note(f"written: {html}")
