"""Training commands: distill and train-heads.

Owns their options and help texts; main.py adds them to the CLI. Not here: their implementation (training/). Imports
are inside the commands, so that `medusa-dist --help` stays fast.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from medusa_dist.cli.options import DtypeOption, HeadsOption, ModelOption, clear_errors, console, note

app = typer.Typer()

# The second name of each is the former one.
PrefixOption = Annotated[
    bool, typer.Option("--prefix/--no-prefix", help="Sequential heads read the whole text, through a layer of theirs.")
]
WidthOption = Annotated[
    int | None, typer.Option(min=1, help="Inner width of the sequential cell; default: by the model's hidden size.")
]
AuxLayersOption = Annotated[
    str,
    typer.Option(
        "--aux-layers",
        "--taps",
        help="Layers whose hidden states a sequential cell also reads: 11,21 or none; auto: two.",
    ),
]
BatchTokensOption = Annotated[
    int, typer.Option("--batch-tokens", "--batch-places", min=1, help="Token positions per training step.")
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help='.jsonl lines {"prompt", "category"}, or one prompt per line; default: the shipped prompts.'),
]
TemperaturesOption = Annotated[str, typer.Option(help="Assigned to the prompts in turn; 0 is greedy.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Answers per prompt.")]
RanksOption = Annotated[
    int,
    typer.Option("--tensor-parallel-size", min=1, help="Ranks the model is sharded over; more than 1 run on Ray."),
]
MaxTokensOption = Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Answers decoded together.")]


def _distill(config: Any, prompts: Path | None, target: Path, **asked: Any) -> None:
    from medusa_dist.tools.progress import ProgressDisplay
    from medusa_dist.tools.tool_llm import open_llm
    from medusa_dist.training.distill import PROMPTS, distill, origin_of

    asked_for = prompts or PROMPTS
    with (
        ProgressDisplay(console, "loading") as progress,
        open_llm(config, looks_inside=False, max_running=asked["batch"], max_batched_tokens=1024) as llm,
    ):
        origin = origin_of(llm, asked_for, asked["temperatures"], asked["samples"], asked["max_tokens"])
        made = distill(llm, asked_for, target, origin, progress.say)
    note(f"{len(made.done)} answers, {made.num_tokens:,} tokens; in {target}")


def _numbers(text: str) -> tuple[float, ...]:
    from medusa_dist.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--temperatures takes numbers separated by commas, not {text!r}") from None


def _layers(text: str) -> tuple[int, ...] | None:
    from medusa_dist.errors import ConfigError

    if text in ("auto", "none"):
        return None if text == "auto" else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--aux-layers takes layer numbers separated by commas, none or auto, not {text!r}") from None


@app.command("distill")
def distill_command(
    target: Annotated[Path, typer.Argument(help="Output file for the answers, .jsonl; an existing one is continued.")],
    model: ModelOption = "demo:smollm2-135m",
    heads: HeadsOption = None,
    dtype: DtypeOption = "bfloat16",
    prompts: PromptsOption = None,
    temperatures: TemperaturesOption = "0,0.7",
    samples: SamplesOption = 1,
    max_tokens: MaxTokensOption = 192,
    batch: BatchOption = 48,
    ranks: RanksOption = 1,
) -> None:
    """Generate training data for heads: the model's answers to prompts. Run it again to continue after a kill."""
    with clear_errors():
        asked = {"temperatures": _numbers(temperatures), "samples": samples, "max_tokens": max_tokens, "batch": batch}
        _distill(_config(model, heads, dtype, ranks), prompts, target, **asked)


@app.command("train-heads")
def train_heads_command(
    target: Annotated[Path, typer.Argument(help="Folder for heads.safetensors and heads.json.")],
    model: ModelOption = "demo:smollm2-135m",
    data: Annotated[Path | None, typer.Option(help="Answers written by distill. Default: generate them first.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for answers, hidden states and checkpoints; default: TARGET.work.")
    ] = None,
    form: Annotated[str, typer.Option(help="sequential, hidden+embedding, or hidden (as in Medusa).")] = "sequential",
    num_heads: Annotated[int, typer.Option(min=1, max=16, help="Number of heads, which is the depth of drafts.")] = 4,
    prefix: PrefixOption = False,
    width: WidthOption = None,
    aux_layers: AuxLayersOption = "auto",
    blocks: Annotated[int, typer.Option(min=1, help="Residual blocks per head; not for the form sequential.")] = 1,
    lm_head: Annotated[
        str, typer.Option(help="lm_head of the heads: shared with the model, or own; sequential: shared only.")
    ] = "shared",
    draft_vocab: Annotated[int, typer.Option(min=1, help="Size of the draft vocabulary.")] = 8192,
    loss: Annotated[str, typer.Option(help="kl, ce, or lk (see docs/heads.md).")] = "kl",
    epochs: Annotated[float, typer.Option(min=0.01)] = 5.0,
    batch_tokens: BatchTokensOption = 1024,
    learning_rate: Annotated[float, typer.Option(min=1e-7)] = 1.5e-3,
    dtype: Annotated[str, typer.Option(help="Dtype of the model, to read and generate answers.")] = "bfloat16",
    prompts: PromptsOption = None,
    temperatures: TemperaturesOption = "0,0.7",
    samples: SamplesOption = 1,
    max_tokens: MaxTokensOption = 192,
    batch: BatchOption = 48,
    ranks: RanksOption = 1,
) -> None:
    """Train heads for a model on its own answers and write a head file. Run it again to continue after a kill."""
    shape: dict[str, Any] = {"form": form, "num_heads": num_heads, "num_blocks": blocks, "prefix": prefix}
    shape |= {"width": width, "draft_vocab_size": draft_vocab, "lm_head": lm_head}
    recipe = {"loss": loss, "epochs": epochs, "batch_tokens": batch_tokens, "learning_rate": learning_rate}
    folder = work or target.with_name(target.name + ".work")
    with clear_errors():
        checked, config = (
            _checked(shape | {"aux_layers": _layers(aux_layers)}, recipe),
            _config(model, None, dtype, ranks),
        )
        folder.mkdir(parents=True, exist_ok=True)
        if data is None:
            data = folder / "answers.jsonl"
            asked = {"temperatures": _numbers(temperatures), "samples": samples}
            _distill(config, prompts, data, **asked, max_tokens=max_tokens, batch=batch)
        _train(config, data, target, folder, *checked)


def _config(model: str, heads: str | None, dtype: str, ranks: int) -> Any:
    from medusa_dist.tools.tool_llm import options_config

    return options_config(model, heads, dtype, ranks)


def _checked(shape: dict[str, Any], recipe: dict[str, Any]) -> tuple[Any, Any]:
    """Validate the shape of the heads and the training recipe, before anything is loaded."""
    from pydantic import ValidationError

    from medusa_dist.config import explain_validation
    from medusa_dist.errors import ConfigError
    from medusa_dist.training.train_heads import Shape
    from medusa_dist.training.train_loop import Recipe

    try:
        return Shape.model_validate(shape), Recipe.model_validate(recipe)
    except ValidationError as error:
        raise ConfigError(explain_validation(error)) from None


def _train(config: Any, data: Path, target: Path, work: Path, shape: Any, recipe: Any) -> None:
    from medusa_dist.tools.progress import ProgressDisplay
    from medusa_dist.training.train_heads import Job, train_heads

    job = Job(config, data, target, work, shape, recipe)
    with ProgressDisplay(console, "starting") as progress:
        file = train_heads(job, note, progress.say)
    note(f"{sum(t.numel() * t.element_size() for t in file.tensors.values()) / 1e6:.1f} MB in {target}")
