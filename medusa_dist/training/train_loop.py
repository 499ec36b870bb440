"""Training loop of the heads: batches, steps, evaluation, and resumable checkpoints.

Owns the loop. Not here: the hidden states (hidden_states.py), the losses (medusa/heads/loss.py), packing
(train_heads.py).
The order of batches depends only on seed and epoch, so a killed run resumes from its last checkpoint and ends with the
same numbers as an uninterrupted one.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from medusa_dist.config_parts.strict import Strict
from medusa_dist.errors import EngineError
from medusa_dist.medusa.heads.loss import OUTSIDE, Kind, Targets, head_loss, total_loss
from medusa_dist.medusa.heads.trainable import TrainableHeads
from medusa_dist.ops.dtypes import has_fast_bfloat16
from medusa_dist.tools.progress import ProgressText
from medusa_dist.training.hidden_states import Positions

RANKS = 5  # accuracies are kept for top-1 to top-5 guesses
_CHECK_ROWS = 4096


class Recipe(Strict):
    """How heads are trained."""

    loss: Kind = "kl"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    epochs: Annotated[float, Field(gt=0)] = 5.0
    batch_tokens: Annotated[int, Field(ge=1)] = 1024
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up_steps: Annotated[int, Field(ge=1)] = 50
    clip: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_steps: Annotated[int, Field(ge=1)] = 100
    patience: Annotated[int, Field(ge=1)] = Field(
        default=2,
        description="Evaluations on the held-out answers, one per epoch, without a gain before training ends.",
    )
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """On held-out answers. accuracies: [head][i], top-(i + 1) accuracy, given that the path before is right.

    chain: tokens per step, over all positions, if the best guess of each head were the only draft.
    """

    accuracies: list[list[float]]
    chain: float


@dataclass
class Progress:
    """The state of training; stored in checkpoints."""

    step: int = 0
    best: float = 0.0
    best_step: int = 0
    checks_without_gain: int = 0


class Trainer:
    """One run. folder: for checkpoints. key: of the data, so that a checkpoint of other data is not resumed."""

    def __init__(
        self,
        heads: TrainableHeads,
        places: tuple[Positions, Positions],
        vocab: Tensor,
        recipe: Recipe,
        folder: Path,
        key: str,
    ) -> None:
        """places: to train on, and held out. vocab: [D] ids the heads know."""
        self.accelerator = Accelerator(mixed_precision=mixed_precision())
        self.recipe = recipe
        self.train, self.held = places
        self.progress = Progress()
        self.losses: list[float] = []  # moving average for each head
        size = int(max(int(vocab.max()), int(places[0].tokens.max()), int(places[0].base_ids.max()))) + 1
        self._columns = torch.full((size,), OUTSIDE)
        self._columns[vocab] = torch.arange(len(vocab))
        self._vocab = vocab
        self._path, self._key = folder / "checkpoint.safetensors", f"{key} {recipe.model_dump_json()} {heads.about}"
        optimizer = torch.optim.AdamW(heads.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.heads, self.optimizer = self.accelerator.prepare(heads, optimizer)
        self._best = {name: t.detach().clone() for name, t in heads.state_dict().items()}
        self._resume()

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; an incomplete last batch is dropped, unless it is the only one."""
        return max(1, int(self.train.is_output.sum()) // self.recipe.batch_tokens)

    @property
    def num_steps(self) -> int:
        """Total steps if training does not end early."""
        return max(1, round(self.recipe.epochs * self.steps_per_epoch))

    def run(self, status: Callable[[str], None], note: Callable[[str], None] = lambda _: None) -> dict[str, Tensor]:
        """Train to the end; returns the best state on the held-out answers.

        status: called in each step; note: called with each evaluation on the held-out answers. Raises EngineError at
        the first loss that is not finite, naming step and batch.
        """
        while self.progress.step < self.num_steps and self.progress.checks_without_gain < self.recipe.patience:
            self._step()
            step = self.progress.step
            if step % self.steps_per_epoch == 0 or step == self.num_steps:
                self._check(note)
            if step % self.recipe.checkpoint_steps == 0 or step == self.num_steps:
                self._save()
            losses = " ".join(f"{loss:.2f}" for loss in self.losses)
            more = f"losses {losses}; held-out tokens per step {self.progress.best:.3f}"
            status(ProgressText("training", step, self.num_steps, "steps", more))
        return self._best

    def batch(self, step: int) -> Tensor:
        """Positions of a step, ascending: [batch size] for heads that see one, else those of whole texts."""
        epoch, number = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.recipe.seed + epoch)
        if self._sees_texts:
            every = torch.randperm(len(self.train.texts), generator=generator)
            texts = sorted(every.tensor_split(self.steps_per_epoch)[number].tolist())
            return torch.cat([torch.arange(*self.train.texts[text]) for text in texts])
        order = torch.randperm(len(self.train), generator=generator)
        return order[number * self.recipe.batch_tokens :][: self.recipe.batch_tokens].sort().values

    def _step(self) -> None:
        step, recipe = self.progress.step, self.recipe
        rows = self.batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.warm_up_steps, self.num_steps)
        with self.accelerator.autocast():
            losses = self._head_losses(rows)
        self.progress.step += 1
        if not losses:
            return  # every position is the last of its answer: nothing to learn
        loss = total_loss(losses, recipe.decay)
        if not bool(torch.isfinite(loss)):
            each = ", ".join(f"{float(one.detach()):g}" for one in losses)
            raise EngineError(
                f"training: the loss is not finite at step {step} (batch of positions {int(rows[0])}..{int(rows[-1])}; "
                f"by head: {each}). Lower learning_rate, or look at those answers"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.heads.parameters(), recipe.clip)
        self.optimizer.step()
        values = [float(one.detach()) for one in losses]
        old = self.losses if len(self.losses) == len(values) else values
        self.losses = [0.95 * a + 0.05 * b for a, b in zip(old, values, strict=True)]

    def _head_losses(self, rows: Tensor) -> list[Tensor]:
        """One loss per head that has a target in this batch."""
        learned = rows[self.train.is_output[rows]]
        known = [self.train.follows(learned, k) for k in range(1, self._num_heads + 1)]
        if not bool(known[0].any()):
            return []
        losses = []
        for k, logits in enumerate(self._logits(self.train, rows)):
            if bool(known[k].any()):
                targets = self._targets(learned[known[k]] + k + 1)
                losses.append(head_loss(logits[known[k].to(logits.device)], targets, self.recipe.loss))
        return losses

    @property
    def _num_heads(self) -> int:
        return int(self.accelerator.unwrap_model(self.heads).about.num_heads)

    @property
    def _sees_texts(self) -> bool:
        return self.accelerator.unwrap_model(self.heads).about.prefix is not None

    def _logits(self, places: Positions, rows: Tensor) -> "list[Tensor]":
        """[M, D] of each head after those of the rows [N] that are tokens of answers, on the true path."""
        device = self.accelerator.device
        learned = rows[places.is_output[rows]]
        further = [(learned + k).clamp_max(len(places) - 1) for k in range(self._num_heads)]
        tokens = torch.stack([places.tokens[each] for each in further], dim=1)
        hidden = places.hidden[rows].to(device)
        if self.accelerator.mixed_precision == "no":
            hidden = hidden.float()
        if not self._sees_texts:
            return list(self.heads(hidden, tokens.to(device)))
        lengths = torch.unique_consecutive(places.answers[rows], return_counts=True)[1].tolist()
        where = places.is_output[rows].nonzero().flatten()
        return list(self.heads(hidden, tokens.to(device), (lengths, where.to(device))))

    def _targets(self, rows: Tensor) -> Targets:
        device = self.accelerator.device
        chances = self.train.base_chances[rows].float()
        columns = self._columns[self.train.base_ids[rows].long()]
        labels = self._columns[self.train.tokens[rows]]
        return Targets(columns.to(device), chances.to(device), labels.to(device))

    @torch.no_grad()
    def score(self) -> Score:
        """Accuracy of the heads on the held-out answers."""
        num_heads, places = self._num_heads, self.held
        ranks = min(RANKS, len(self._vocab))
        hits, counts = torch.zeros(num_heads, ranks), torch.zeros(num_heads)
        accepted, ends = 0.0, 0
        for some in places.chunks(_CHECK_ROWS):
            with self.accelerator.autocast():
                guesses = [logits.topk(ranks, dim=-1).indices.cpu() for logits in self._logits(places, some)]
            rows = some[places.is_output[some]]
            alive = torch.ones(len(rows), dtype=torch.bool)
            for k, columns in enumerate(guesses):
                known = places.follows(rows, k + 1)
                further = (rows + k + 1).clamp_max(len(places) - 1)
                right = (self._vocab[columns] == places.tokens[further][:, None]) & known[:, None]
                hits[k] += right.sum(dim=0)
                counts[k] += known.sum()
                alive &= right[:, 0]
                accepted += float(alive.sum())
            ends += int(places.follows(rows, 1).sum())
        shares = hits.cumsum(dim=1) / counts.clamp_min(1)[:, None]
        return Score([[round(float(x), 4) for x in head] for head in shares], 1.0 + accepted / max(1, ends))

    def load(self, state: dict[str, Tensor]) -> None:
        """Load a state as returned by run()."""
        self.accelerator.unwrap_model(self.heads).load_state_dict(state)

    def _check(self, note: Callable[[str], None]) -> None:
        chain = self.score().chain
        if chain > self.progress.best:
            self.progress.best, self.progress.best_step = chain, self.progress.step
            self.progress.checks_without_gain = 0
            heads = self.accelerator.unwrap_model(self.heads)
            self._best = {name: t.detach().cpu().clone() for name, t in heads.state_dict().items()}
        else:
            self.progress.checks_without_gain += 1
        note(f"after step {self.progress.step}: {chain:.3f} tokens per step with top-1 guesses only, held out")

    def _save(self) -> None:
        heads = self.accelerator.unwrap_model(self.heads)
        tensors = {f"now.{name}": t for name, t in heads.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self._best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        metadata = {"key": self._key, "progress": json.dumps(vars(self.progress)), "losses": json.dumps(self.losses)}
        scratch = self._path.with_suffix(".part")
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, scratch, metadata=metadata)
        scratch.replace(self._path)

    def _resume(self) -> None:
        if not self._path.is_file():
            return
        with safe_open(self._path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != self._key:
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.load(_part(tensors, "now."))
        self._best = _part(tensors, "best.")
        whole = self.optimizer.state_dict()
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "adam.").items():
            number, field = name.split(".", 1)
            states.setdefault(int(number), {})[field] = tensor
        self.optimizer.load_state_dict(whole | {"state": states})
        self.progress = Progress(**json.loads(metadata["progress"]))
        self.losses = json.loads(metadata["losses"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def schedule(step: int, warm_up: int, num_steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def mixed_precision() -> str:
    """bfloat16 where the device has fast bfloat16 products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if has_fast_bfloat16(device) else "no"
