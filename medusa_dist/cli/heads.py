"""Commands that use heads: convert-heads, eval-heads, tune-tree.

Owns their options and help texts; main.py adds them to the CLI. Not here: their implementation (heads_tools/). Imports
are inside the commands, so that `medusa-dist --help` stays fast.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medusa_dist.cli.options import (
    AppOption,
    ConfigArgument,
    DtypeOption,
    HeadsOption,
    ModelOption,
    clear_errors,
    console,
    note,
    parse_sizes,
    tool_config,
)

app = typer.Typer()

PromptsOption = Annotated[
    Path | None,
    typer.Option(help='.jsonl lines {"prompt", "category"}, or one prompt per line; default: the shipped prompts.'),
]


@app.command("convert-heads")
def convert_heads(
    source: Annotated[str, typer.Argument(help="Published heads: file, folder or hub id.")],
    target: Annotated[Path, typer.Argument(help="New folder for heads.safetensors and heads.json.")],
    base: Annotated[str, typer.Option(help="The base model of the heads: hub id, folder, GGUF file, or a demo model.")],
    trust_tensors: Annotated[
        bool, typer.Option("--trust-tensors", help="Trust the tensors if config.json gives another number of heads.")
    ] = False,
) -> None:
    """Convert published Medusa heads (Medusa, TGI, TensorRT-LLM, vLLM; .pt or safetensors) to our head file format, and
    .bin files of EAGLE-3 heads to safetensors. Safetensors of either kind are also served as they are."""
    with clear_errors():
        from medusa_dist.heads_tools.convert_heads import convert_heads as run
        from medusa_dist.medusa.eagle3.checkpoint import Eagle3File

        with console.status("converting"):
            done = run(source, target, base, trust_tensors)
        if isinstance(done, Eagle3File):
            note(f"EAGLE-3 heads for {done.made_for}, {done.num_known} tokens known; in {target}")
            return
        file, found = done
        about = file.description
        blocks = f"{about.num_heads} heads of {about.num_blocks} block{'s' if about.num_blocks > 1 else ''}"
        note(f"{blocks}, {about.lm_head} output rows, {about.dtype}, from the layout {found.layout}; in {target}")


@app.command("eval-heads")
def eval_heads(
    config: ConfigArgument = None,
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "float32",
    app_name: AppOption = None,
    prompts: PromptsOption = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy; otherwise prompt i uses seed i.")] = 0.0,
    timed: Annotated[int, typer.Option(min=0, help="Prompts per category that are also timed.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Write the full report to this file, as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write plots to this file: .png, .svg or .pdf. Needs matplotlib.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the accuracies to the heads' heads.json.")] = False,
) -> None:
    """Evaluate heads on the model's own answers: accuracy, calibration, tokens per step by tree size, speed."""
    with clear_errors():
        from medusa_dist.engine.startup.find_heads import find_heads
        from medusa_dist.heads_tools import eval_heads as job
        from medusa_dist.heads_tools.eval_report import show
        from medusa_dist.sampling_params import SamplingParams
        from medusa_dist.tools.progress import ProgressDisplay
        from medusa_dist.tools.prompts import SHIPPED
        from medusa_dist.tools.tool_llm import open_llm

        draw = None if plot is None else _draw()
        checked = tool_config(config, app_name, model, heads, dtype)
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
        with ProgressDisplay(console, "loading") as progress, open_llm(checked) as llm:
            folder = find_heads(checked)
            name = "no heads" if folder is None else folder.name
            report = job.eval_heads(llm, name, job.Asked(prompts or SHIPPED, params, timed), progress.say)
        show(report, Console())
        if output is not None:
            output.write_text(job.as_json(report) + "\n")
        if draw is not None:
            draw(report, plot)
            note(f"plots written: {plot}")
        if write and folder is not None:
            job.write_accuracies(folder, report)
            note(f"written: top_accuracies in {folder / 'heads.json'}")


@app.command("tune-tree")
def tune_tree(
    config: ConfigArgument = None,
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "float32",
    app_name: AppOption = None,
    prompts: PromptsOption = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,4",
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 48,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy; otherwise prompt i uses seed i.")] = 0.0,
    mode: Annotated[
        str, typer.Option(help="Result to write: auto (dynamic), static, or best (the faster one).")
    ] = "best",
    output: Annotated[Path | None, typer.Option(help="Write YAML for `args:` of a Serve config to this file.")] = None,
) -> None:
    """Find the fastest trees for these heads on this machine, from measured acceptance and measured step times."""
    with clear_errors():
        from medusa_dist.errors import ConfigError
        from medusa_dist.heads_tools.tune_report import as_yaml, recommended, show
        from medusa_dist.heads_tools.tune_tree import MAX_NODES
        from medusa_dist.heads_tools.tune_tree import tune_tree as run
        from medusa_dist.sampling_params import SamplingParams
        from medusa_dist.tools.progress import ProgressDisplay
        from medusa_dist.tools.prompts import SHIPPED, prompt_ids, read_prompts
        from medusa_dist.tools.tool_llm import open_llm

        if mode not in ("best", "auto", "static"):
            raise ConfigError(f"--mode takes best, auto or static, not {mode!r}")
        sizes = parse_sizes(batch, "--batch")
        checked = tool_config(config, app_name, model, heads, dtype)
        questions = read_prompts(prompts or SHIPPED)
        widest = {"mode": "auto", "max_nodes": MAX_NODES}
        rows = max(checked.max_batched_tokens, 512)
        with ProgressDisplay(console, "loading") as progress, open_llm(checked, widest, max_batched_tokens=rows) as llm:
            asked = [(prompt_ids(llm, question.text), question.category) for question in questions]
            params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
            tuning = run(llm, asked, sizes, params, progress.say)
        show(tuning, Console())
        chosen = recommended(tuning) if mode == "best" else mode
        text = as_yaml(tuning, "static" if chosen == "static" else "auto")
        if output is None:
            print(text, end="")
        else:
            output.write_text(text)
            note(f"written: {output}")


def _draw() -> Any:
    """The plotting function. Raises ConfigError, before anything is measured, if matplotlib is missing."""
    from medusa_dist.errors import ConfigError

    try:
        from medusa_dist.heads_tools.plots import draw
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'medusa-dist[plots]'") from None
    return draw
