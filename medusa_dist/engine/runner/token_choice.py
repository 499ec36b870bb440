"""TokenChoice: the token after each row, as far as one shard of the vocabulary can tell.

Owns this rank's copy of the sampling parameters, temperature, noise and argmax, and the best of all shards. Not here:
rows that need more than that, whose full logits go to rank 0 (spec/token_selector.py), the noise (ops/noise.py).
Shapes: W rows, V vocabulary, Vs this rank's shard of it.
"""

import numpy as np
import torch
from torch import Tensor

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.served_model import ServedModel
from medusa_dist.ops.arrays import Array, Ints
from medusa_dist.ops.gpu.choice_kernel import choose
from medusa_dist.ops.noise import NoiseColumns, compile_noise, gumbel
from medusa_dist.ops.sampling import lowest_argmax, perturb

_NO_TOKEN = 2.0**40

Choices = tuple[Ints, dict[int, Tensor]]  # as in Scores: the tokens [W], and full logits by row


class TokenChoice:
    """One rank's. kernels: select in Triton's kernel (a GPU)."""

    def __init__(self, model: ServedModel, max_running: int, kernels: bool) -> None:
        self._model = model
        self._kernels = kernels
        if model.device.type == "cpu":
            compile_noise()
        self._seeds: Ints = np.zeros(max_running, dtype=np.int64)
        self._temperatures = np.zeros(max_running, dtype=np.float64)
        self._whole: Ints = np.zeros(max_running, dtype=np.int64)
        num_valid = max(0, min(model.vocab_size - model.vocab_start, model.vocab_shard))
        self._num_valid = num_valid  # columns of the shard that are tokens; the padding after them is never selected
        self._noise_columns = NoiseColumns.of_range(model.vocab_start, model.vocab_start + num_valid, model.device)

    def admit(self, plan: Plan) -> None:
        """Take over the sampling parameters of the sequences that the plan admits."""
        admitted = plan.admitted_indices
        self._seeds[admitted], self._whole[admitted] = plan.admitted_seeds, plan.admitted_full_logits
        self._temperatures[admitted] = plan.admitted_temperatures.view(np.float64)

    def noise_of(self, batch_indices: Ints) -> tuple[Ints, Array]:
        """Seeds and temperatures (float32) of these sequences."""
        return self._seeds[batch_indices], self._temperatures[batch_indices].astype(np.float32)

    def choose(self, logits: Tensor, batch_indices: Ints, positions: Tensor) -> Choices:
        """logits [W, Vs], batch_indices [W] (on the host), positions [W] of the rows; selects the token after each.

        Called by all ranks together; rank 0 gets the choices, -1 for rows whose full logits it gets.
        """
        needs_full = self._whole[batch_indices] == 1
        if self._model.parallel.world_size == 1 and not self._kernels:
            # One rank has the full logits anyway, so noise is generated later, only for nodes that the traversal
            # reaches.
            needs_full |= self._temperatures[batch_indices] > 0
        full_rows, plain_rows = np.flatnonzero(needs_full), np.flatnonzero(~needs_full)
        choices: Ints = np.full(batch_indices.size, -1, dtype=np.int64)
        if plain_rows.size:
            plain, next_positions = logits, positions + 1
            if full_rows.size:  # otherwise all rows are plain, and these large logits need no copy
                rows = self._tensor(plain_rows)
                plain, next_positions = logits.index_select(0, rows), next_positions[rows]
            best = self._best_of_shards(self.pairs(*self._best(plain, batch_indices[plain_rows], next_positions)))
            if best is not None:
                choices[plain_rows] = best
        return choices, self._gather_full(logits, full_rows, full_rows)

    def pick(self, pairs: Tensor, logits: Tensor, rows: Ints, batch_indices: Ints) -> Choices:
        """`choose` after a captured step, whose pairs [N, 2] and logits [N, Vs] are of all its rows. rows [W]: those
        that are asked for."""
        needs_full = self._whole[batch_indices] == 1
        choices: Ints = np.full(rows.size, -1, dtype=np.int64)
        best = self._best_of_shards(pairs)
        if best is not None:
            choices[~needs_full] = best[rows[~needs_full]]
        full_rows = np.flatnonzero(needs_full)
        return choices, self._gather_full(logits, rows[full_rows], full_rows)

    def best(self, logits: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        """Best score [R] and its column [R] in this rank's shard, of rows of any temperature [R] (float32); positions
        [R] of the tokens to select. Nothing depends on what the tensors hold, so it can be captured."""
        if self._kernels and self._num_valid:
            return choose(logits, seeds, positions, temperatures, self._model.vocab_start, self._num_valid)
        scores = logits[:, : self._num_valid].float()
        is_sampled = temperatures > 0.0
        noisy = perturb(
            scores, torch.where(is_sampled, temperatures, 1.0), gumbel(seeds, positions, self._noise_columns)
        )
        return lowest_argmax(torch.where(is_sampled[:, None], noisy, scores))

    def pairs(self, values: Tensor, columns: Tensor) -> Tensor:
        """[R, 2] float64: best values and tokens of this shard, to be compared with those of others."""
        return torch.stack([values.double(), (columns + self._model.vocab_start).double()], dim=1)

    def _best_of_shards(self, pairs: Tensor) -> Ints | None:
        gathered = self._model.parallel.gather_to_rank0(pairs)
        return None if gathered is None else best_of_shards(torch.stack(gathered))

    def _gather_full(self, logits: Tensor, rows: Ints, names: Ints) -> dict[int, Tensor]:
        """Full logits of some rows on rank 0, by their names."""
        if not rows.size:
            return {}
        # Logits are large: do not copy them unless needed.
        own = logits if rows.size == logits.shape[0] else logits.index_select(0, self._tensor(rows))
        shards = self._model.parallel.gather_to_rank0(own.float())
        if shards is None:
            return {}
        full = (shards[0] if len(shards) == 1 else torch.cat(shards, dim=1))[:, : self._model.vocab_size]
        return {int(name): full[i] for i, name in enumerate(names)}

    def _best(self, logits: Tensor, batch_indices: Ints, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Best score [R] and its column [R] in this rank's shard, of rows that need only temperature and noise."""
        if not self._kernels or not self._num_valid:
            return lowest_argmax(self._plain_scores(logits, batch_indices, positions))
        seeds, temperatures = (torch.from_numpy(x).to(self._model.device) for x in self.noise_of(batch_indices))
        return self.best(logits, seeds, positions, temperatures)

    def _plain_scores(self, logits: Tensor, batch_indices: Ints, positions: Tensor) -> Tensor:
        """Scores [R, valid columns] of rows that need only temperature and noise."""
        scores = logits[:, : self._num_valid].float()
        temperatures = self._temperatures[batch_indices]
        if not temperatures.any():
            return scores
        sampled = self._tensor(np.flatnonzero(temperatures))
        # Rows at the same depth of a tree have the same position and seed, hence the same noise: generate it once.
        keys = torch.stack([self._tensor(self._seeds[batch_indices])[sampled], positions[sampled]], dim=1)
        unique, inverse = torch.unique(keys, dim=0, return_inverse=True)
        noise = gumbel(unique[:, 0], unique[:, 1], self._noise_columns)[inverse]
        sampled_temperatures = torch.from_numpy(temperatures).to(device=logits.device, dtype=torch.float32)[sampled]
        return scores.index_copy(0, sampled, perturb(scores[sampled], sampled_temperatures, noise))

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self._model.device)


def best_of_shards(pairs: Tensor) -> Ints:
    """pairs [ranks, R, 2] of (value, id): the id of the largest value per row; ties go to the lowest id.

    A row of NaN gets an id outside any vocabulary.
    """
    values, ids = pairs[..., 0], pairs[..., 1]
    best = values.amax(dim=0, keepdim=True)
    lowest = torch.where(values == best, ids, _NO_TOKEN).amin(dim=0)
    chosen: Ints = lowest.cpu().numpy().astype(np.int64)
    return chosen
