"""`medusa-dist train-heads`: from a model without heads to a head file that serves.

Owns the job: one pass of the model over its answers, training, packing. Not here: the answers (distill.py), the parts
(hidden_states.py, train_loop.py).
The base model is frozen: only the heads are trained, so the service's answers do not change.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medusa_dist.config import Config
from medusa_dist.config_parts.strict import Strict
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription, PrefixLayerShape
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.trainable import TrainableHeads
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.load import Outline, check_servable, load_full_rows, read_outline
from medusa_dist.model.sharding_plans import HeadShape
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.ops.dtypes import choose_dtype
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.serve.local_group import run_ranks
from medusa_dist.training import hidden_states_rank as places_rank
from medusa_dist.training.distill import PROMPTS
from medusa_dist.training.hidden_states import KEPT, Data, Positions, data_key, load_positions, read_data
from medusa_dist.training.hidden_states_config import HiddenStatesConfig
from medusa_dist.training.train_loop import Recipe, Score, Trainer, mixed_precision
from medusa_dist.training.training_memory import reading_bytes, training_bytes

_LEAST_WIDTH = 1024
_SAMPLED = 4096  # positions


class Shape(Strict):
    """The heads to train."""

    form: Literal["hidden", "hidden+embedding", "sequential"] = "sequential"
    num_heads: Annotated[int, Field(ge=1, le=16)] = 4
    num_blocks: Annotated[int, Field(ge=1)] = Field(default=1, description="Not for the form sequential.")
    prefix: bool = Field(
        default=False, description="Heads of the form sequential start from a layer that sees the whole text."
    )
    width: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Only for the form sequential. None: the hidden size, at least 1024; 2048 without a prefix layer.",
    )
    aux_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        description="Aux layers that the heads read as well, counted from 0; only for the form sequential. None: "
        "two, at 3/8 and 7/10 of the depth.",
    )
    draft_vocab_size: Annotated[int, Field(ge=1)] = Field(
        default=8192, description="The tokens that the model emits most often; the whole vocabulary if that is smaller."
    )
    lm_head: Literal["shared", "own"] = "shared"
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.05, description="Share of the prompts whose answers are held out for evaluation."
    )

    @model_validator(mode="after")
    def _aux_layers_belong_to_sequential(self) -> "Shape":
        if self.aux_layers and self.form != "sequential":
            raise ValueError(f"aux_layers belong to the form 'sequential', not to {self.form!r}")
        return self

    @property
    def has_prefix(self) -> bool:
        """Whether the heads have a prefix layer."""
        return self.prefix and self.form == "sequential"

    def cell_width(self, hidden_size: int) -> int | None:
        """Inner width of the cell; None for forms without one."""
        if self.form != "sequential":
            return None
        return self.width or (max(_LEAST_WIDTH, hidden_size) if self.prefix else 2 * _LEAST_WIDTH)

    def tapped(self, num_layers: int) -> tuple[int, ...]:
        """The aux layers of a model with num_layers layers, ascending. Raises ConfigError for one that it lacks."""
        if self.form != "sequential":
            return ()
        if self.aux_layers is None:  # the last layer adds no information
            return tuple(sorted({num_layers * 3 // 8, num_layers * 7 // 10} - {num_layers - 1}))
        missing = [layer for layer in self.aux_layers if layer >= num_layers]
        if missing:
            raise ConfigError(f"aux_layers: there is no layer {missing[0]}; the model's are 0 to {num_layers - 1}")
        return tuple(sorted(set(self.aux_layers)))


@dataclass(frozen=True)
class Job:
    """What to train, from which data, and where to store files. The pass over the answers uses the config's dtype."""

    config: Config
    data: Path
    target: Path
    work: Path
    shape: Shape
    recipe: Recipe

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the model for the pass over the answers."""
        return choose_dtype(self.config.dtype, torch.device("cpu"))


def train_heads(job: Job, note: Callable[[str], None], status: Callable[[str], None]) -> HeadsFile:
    """Train, pack into job.target, and return the head file. Resumes after a kill.

    note: called with lines worth keeping on screen; status: with the current progress. Raises ConfigError or
    EngineError.
    """
    folder = model_folder(job.config)
    found = fingerprint(folder)
    data = read_data(job.data, job.config.model, found)
    job.work.mkdir(parents=True, exist_ok=True)
    check_servable(folder, job.config.tensor_parallel_size, job.config.trust_remote_code)
    base = read_outline(
        folder, dtype=job.dtype, device=torch.device("cpu"), trust_remote_code=job.config.trust_remote_code
    )
    places, key = _places(job, base, data, found, note, status)
    held = data.held_out(job.shape.held_out)
    train, judge = places.of(~held), places.of(held)
    vocab = draft_vocab(train, min(job.shape.draft_vocab_size, base.vocab_size), base.vocab_size)
    covered = float(torch.isin(judge.tokens[judge.is_output], vocab).float().mean())
    learned, kept = int(train.is_output.sum()), int(judge.is_output.sum())
    note(
        f"{len(data.answers)} answers, {learned:,} positions to train on and {kept:,} held out; "
        f"draft vocabulary of {len(vocab)} tokens, which covers {covered:.1%} of the held-out ones"
    )
    embedding = load_full_rows(base, "input").float()
    about = describe(job, base, found, vocab, places, embedding)
    rows = load_full_rows(base, "output", vocab)
    rows = rows.bfloat16() if mixed_precision() == "bf16" else rows.float()
    heads = TrainableHeads(about, rows, embedding, _rms(_sample(places, base.hidden_size)))
    note(f"memory: about {training_bytes(heads, places, vocab, job.recipe) / 1e9:.1f} GB at the peak of training")
    trainer = Trainer(heads, (train, judge), vocab, job.recipe, job.work, key)
    if trainer.progress.step:
        note(f"resuming after step {trainer.progress.step}")
    best = trainer.run(status, note)
    trainer.load(best)
    score = trainer.score()
    file = pack(about, best, vocab, score, data, job, trainer)
    file.save(job.target)
    note(summary(score, trainer))
    return file


def _places(
    job: Job,
    base: Outline,
    data: Data,
    found: str,
    note: Callable[[str], None],
    status: Callable[[str], None],
) -> tuple[Positions, str]:
    """The result of the pass over the answers, possibly from an earlier run, and its key."""
    aux_layers = job.shape.tapped(base.num_layers)
    with_prompts, path = job.shape.has_prefix, job.work.resolve() / "places.safetensors"
    key = data_key(data.answers, found, job.dtype, aux_layers, with_prompts)
    places = load_positions(path, key)
    if places is None:
        job_keys = {
            "answers": data.path.resolve(),
            "target": path,
            "key": key,
            "aux_layers": aux_layers,
            "with_prompts": with_prompts,
        }
        config = HiddenStatesConfig.model_validate(job.config.model_dump() | job_keys)
        prompts = sum(len(answer.prompt_ids) for answer in data.answers) if with_prompts else 0
        peak = reading_bytes(config, base, prompts + sum(len(answer.output_ids) for answer in data.answers))
        where = "" if config.tensor_parallel_size == 1 else f" on each of {config.tensor_parallel_size} ranks"
        note(f"memory: about {peak / 1e9:.2g} GB{where} while the answers are read")
        if config.tensor_parallel_size == 1:
            places_rank.HiddenStatesRank(config, base.checkpoint.folder, progress=status).follow()
        else:
            run_ranks(config, places_rank.STACK, status)
        places = load_positions(path, key)
        assert places is not None, "the pass wrote no result"
    return places, key


def draft_vocab(places: Positions, size: int, vocab_size: int) -> Tensor:
    """[size], sorted: the tokens that the base model expects most in its answers; ties to the lower id."""
    weights = torch.zeros(vocab_size, dtype=torch.float64)
    ids, chances = places.base_ids[places.is_output], places.base_chances[places.is_output]
    weights.index_add_(0, ids.flatten().long(), chances.flatten().double())
    weights -= 1e-9 * torch.arange(vocab_size)
    return weights.topk(size).indices.sort().values


def describe(
    job: Job, model: Outline, found: str, vocab: Tensor, places: Positions, embedding: Tensor
) -> HeadsDescription:
    """heads.json before training."""
    shape, sequential = job.shape, job.shape.form == "sequential"
    used = embedding[places.tokens[:: max(1, len(places) // _SAMPLED)]]
    scale = _rms(_sample(places, model.hidden_size)) / max(_rms(used), 1e-6)
    return HeadsDescription(
        form=shape.form,
        width=shape.cell_width(model.hidden_size),
        prefix=_prefix_shape(model) if shape.has_prefix else None,
        embedding_scale=1.0 if shape.form == "hidden" else round(scale, 3),
        tapped_layers=(-1, *shape.tapped(model.num_layers)),
        num_heads=shape.num_heads,
        num_blocks=1 if sequential else shape.num_blocks,
        lm_head="shared" if sequential else shape.lm_head,
        draft_vocab_size=None if len(vocab) == model.vocab_size else len(vocab),
        offsets=tuple(range(1, shape.num_heads + 1)),
        dtype="bfloat16",
        base=BaseModelFacts(
            name=job.config.model,
            fingerprint=found,
            hidden_size=model.hidden_size,
            vocab_size=model.vocab_size,
            layer_width=None if model.layer_width == model.hidden_size else model.layer_width,
        ),
    )


def _sample(places: Positions, hidden_size: int) -> Tensor:
    """Last hidden states of some positions."""
    return places.hidden[:: max(1, len(places) // _SAMPLED), :hidden_size].float()


def _rms(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def _prefix_shape(model: Outline) -> PrefixLayerShape:
    """Attention heads as the model's; an MLP of 9/4 of its hidden size, in steps of 64."""
    heads = HeadShape.of(model.config, TPGroup())
    return PrefixLayerShape(
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        inner=max(64, model.hidden_size * 9 // 4 // 64 * 64),
    )


def pack(
    about: HeadsDescription,
    state: dict[str, Tensor],
    vocab: Tensor,
    score: Score,
    data: Data,
    job: Job,
    trainer: Trainer,
) -> HeadsFile:
    """The head file: tensors in bfloat16, and their origin."""
    tensors = {name: t.to(torch.bfloat16) for name, t in state.items()}
    if about.draft_vocab_size is not None:
        tensors["draft_vocab"] = vocab.int()
    training = {
        "answers": data.path.name,
        "answers_sha256": hashlib.sha256(data.path.read_bytes()).hexdigest(),
        "origin": data.origin.model_dump(),
        "categories": dict(sorted(Counter(answer.category for answer in data.answers).items())),
        "sources_and_licences": "medusa_dist/data/train_prompts.md" if data.origin.prompts == PROMPTS.name else "",
        "places": int(trainer.train.is_output.sum()),
        "places_held_out": int(trainer.held.is_output.sum()),
        "recipe": job.recipe.model_dump() | {"kept_of_each_distribution": KEPT, "held_out": job.shape.held_out},
        "steps": trainer.progress.best_step,
        "held_out_chain_tokens_per_step": round(score.chain, 3),
    }
    packed = about.model_copy(
        update={"training": training, "top_accuracies": tuple(tuple(head) for head in score.accuracies)}
    )
    return HeadsFile(packed, tensors)


def summary(score: Score, trainer: Trainer) -> str:
    """One line per head."""
    lines = [
        f"head {k}: top-1 accuracy {head[0]:.1%}, top-{len(head)} {head[-1]:.1%}"
        for k, head in enumerate(score.accuracies, start=1)
    ]
    lines.append(
        f"best after step {trainer.progress.best_step}: {score.chain:.3f} tokens per step with top-1 guesses only"
    )
    return "\n".join(lines)
