"""Worker: executes plans on one rank: KV copies, forward pass, local token selection.

Owns this rank's copy of block tables and sampling parameters. Not here: the broadcast (broadcast.py), what rank 0 does
with the scores (spec/token_selector.py).
Shapes: W logits rows, V vocabulary, Vs this rank's shard of it, I width of what the heads read (model/load.py).
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medusa_dist.engine.runner.batch_builder import prepare
from medusa_dist.engine.runner.phase_timer import PhaseTimer
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.prompt_logprobs import PromptLogprobs, gather_prompt_logprobs
from medusa_dist.engine.runner.served_model import ServedModel
from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import AttentionBackend, AttentionParams
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.gpu.choice_kernel import choose
from medusa_dist.ops.noise import NoiseColumns, compile_noise, gumbel
from medusa_dist.ops.sampling import lowest_argmax, perturb

_NO_TOKEN = 2.0**40


@dataclass(frozen=True)
class Scores:
    """The results of verification on rank 0, aligned with the W logits rows of the plan (batch_builder.wanted_rows)."""

    choices: Ints  # [W] the token selected after each row; -1 for rows that need full logits
    full_logits: dict[int, Tensor]  # logits row -> its logits [V], for requests that need more than an argmax
    hidden: (
        Tensor  # [W, I] what the heads read: the input of the lm_head, then the aux hidden states; or a reader's rows
    )
    prompt_logprobs: PromptLogprobs | None = None  # of the plan's prompt logprob rows; None if there are none


class RowReader(Protocol):
    """Follows all rows of all passes on rank 0, prompt rows too: for heads that keep keys and values of their own."""

    def copy(self, plan: Plan) -> None:
        """Called where the plan's KV rows are copied, before any row of the step is written."""

    def read(self, plan: Plan, tables: Ints, batch: ForwardBatch, states: Tensor) -> Tensor:
        """After a pass: states [T, H + A], the last and the aux hidden states of all its rows, padding included.

        tables: as for prepare(). -> [T, I], what the heads read of each row, for Scores.hidden.
        """


class Worker:
    """The same code on every rank; only rank 0 gets Scores."""

    def __init__(
        self,
        model: ServedModel,
        pool: KVCache,
        max_running: int,
        max_blocks: int,
        attention: AttentionBackend,
        reader: RowReader | None = None,
        kernels: bool = False,
    ) -> None:
        """reader: on rank 0, of heads that follow all rows. kernels: select tokens in Triton's kernel (a GPU)."""
        self.model = model
        self.pool = pool
        self._reader = reader
        self._kernels = kernels
        self._attention = attention
        attention.warm_up(pool.rows.dtype)
        if model.device.type == "cpu":
            compile_noise()
        self._tables: Ints = np.zeros((max_running, max_blocks), dtype=np.int64)
        self._seeds: Ints = np.zeros(max_running, dtype=np.int64)
        self._temperatures = np.zeros(max_running, dtype=np.float64)
        self._whole: Ints = np.zeros(max_running, dtype=np.int64)
        num_valid = max(0, min(model.vocab_size - model.vocab_start, model.vocab_shard))
        self._num_valid = num_valid  # columns of the shard that are tokens; the padding after them is never selected
        self._noise_columns = NoiseColumns.of_range(model.vocab_start, model.vocab_start + num_valid, model.device)

    @torch.inference_mode()
    def execute(self, plan: Plan, clock: PhaseTimer | None = None) -> Scores | None:
        """Run one step. Rank 0 gets the scores, the others None. clock: None if the phases are not timed."""
        clock = clock or PhaseTimer()
        self._apply_deltas(plan)
        batch = prepare(plan, self._tables, self.model.device, self._attention) if plan.batch_indices.size else None
        clock.lap("prepare")
        if plan.copy_sources.size:
            self.pool.copy_rows(self._tensor(plan.copy_sources), self._tensor(plan.copy_targets))
            if self._reader is not None:
                self._reader.copy(plan)
        clock.lap("copy")
        if batch is None:
            return Scores(np.zeros(0, dtype=np.int64), {}, torch.empty(0, self.model.hidden_size))
        logits, hidden = self._forward(plan, batch)
        clock.lap("forward")
        batch_indices = np.repeat(plan.batch_indices, np.where(plan.needs_logits == 1, plan.num_draft_tokens + 1, 0))
        scores = self._choose(
            logits[: batch_indices.size],
            hidden[: batch_indices.size],
            batch_indices,
            batch.positions[batch.logits_rows],
        )
        if plan.prompt_targets.size:
            model, num_top = self.model, int(plan.num_top_logprobs.max())
            found = gather_prompt_logprobs(
                logits[batch_indices.size :], plan.prompt_targets, num_top, model.vocab_size, model.parallel
            )
            scores = scores and replace(scores, prompt_logprobs=found)
        clock.lap("sample")
        return scores

    def _forward(self, plan: Plan, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """logits [W + R, Vs] and hidden [W + R, I] of the W logits rows, then the R prompt logprob rows."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
            return self._attention(layer, q, k, v, params, self.pool, batch)

        # A matrix product with a single row may use another kernel and round differently: duplicate a single row.
        rows = torch.cat([batch.logits_rows, batch.prompt_logprob_rows])
        repeated = rows.repeat(2) if rows.numel() == 1 else rows
        with attention_context.using(attend):
            if self._reader is None:
                logits, hidden = self.model.forward(batch.input_ids, batch.positions, repeated)
            else:
                logits, states = self.model.forward_all_rows(batch.input_ids, batch.positions, repeated)
                hidden = self._reader.read(plan, self._tables, batch, states)[rows]
        return logits[: rows.numel()], hidden[: rows.numel()]

    def _apply_deltas(self, plan: Plan) -> None:
        for index, seed, temperature, full_logits in zip(
            plan.admitted_indices,
            plan.admitted_seeds,
            plan.admitted_temperatures,
            plan.admitted_full_logits,
            strict=True,
        ):
            self._seeds[index], self._whole[index] = seed, full_logits
            self._temperatures[index] = temperature.view(np.float64)
        begin = 0
        for index, kept, count in zip(plan.batch_indices, plan.num_kept_blocks, plan.num_new_blocks, strict=True):
            if count:
                self._tables[index, kept : kept + count] = plan.blocks[begin : begin + count]
                begin += count

    def _choose(self, logits: Tensor, hidden: Tensor, batch_indices: Ints, positions: Tensor) -> Scores | None:
        """logits [W, Vs], batch_indices [W] (on the host), positions [W] of the rows; selects the token after each."""
        parallel, model = self.model.parallel, self.model
        needs_full = self._whole[batch_indices] == 1
        if parallel.world_size == 1 and not self._kernels:
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
            values, ids = self._best(plain, batch_indices[plain_rows], next_positions)
            pairs = torch.stack([values.double(), (ids + model.vocab_start).double()], dim=1)
            gathered = parallel.gather_to_rank0(pairs)
            if gathered is not None:
                choices[plain_rows] = _best_of_shards(torch.stack(gathered))
        full_logits: dict[int, Tensor] = {}
        if full_rows.size:
            # Logits are large: do not copy them unless needed.
            rows = logits if not plain_rows.size else logits.index_select(0, self._tensor(full_rows))
            shards = parallel.gather_to_rank0(rows.float())
            if shards is not None:
                full = (shards[0] if len(shards) == 1 else torch.cat(shards, dim=1))[:, : model.vocab_size]
                full_logits = {int(row): full[i] for i, row in enumerate(full_rows)}
        return Scores(choices, full_logits, hidden) if parallel.rank == 0 else None

    def _best(self, logits: Tensor, batch_indices: Ints, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Best score [R] and its column [R] in this rank's shard, of rows that need only temperature and noise."""
        if not self._kernels or not self._num_valid:
            return lowest_argmax(self._plain_scores(logits, batch_indices, positions))
        seeds = self._tensor(self._seeds[batch_indices])
        temperatures = torch.from_numpy(self._temperatures[batch_indices].astype(np.float32)).to(self.model.device)
        return choose(logits, seeds, positions, temperatures, self.model.vocab_start, self._num_valid)

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
        return torch.from_numpy(values).to(self.model.device)


def _best_of_shards(pairs: Tensor) -> Ints:
    """pairs [ranks, R, 2] of (value, id): the id of the largest value per row; ties go to the lowest id.

    A row of NaN gets an id outside any vocabulary.
    """
    values, ids = pairs[..., 0], pairs[..., 1]
    best = values.amax(dim=0, keepdim=True)
    lowest = torch.where(values == best, ids, _NO_TOKEN).amin(dim=0)
    chosen: Ints = lowest.cpu().numpy().astype(np.int64)
    return chosen
