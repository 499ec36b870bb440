"""Worker: executes plans on one rank: KV copies, forward pass, local token selection.

Owns this rank's copy of block tables, and the two ways to run a step: captured (graphed_steps.py) or launch by launch.
Not here: the broadcast (broadcast.py), the choice of tokens (token_choice.py), what rank 0 does with the scores
(spec/token_selector.py).
Shapes: W logits rows, R prompt logprob rows, V vocabulary, Vs this rank's shard of it, I width of what the heads read
(model/load.py).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medusa_dist.engine.runner.batch_builder import logits_rows_of, prepare, prompt_logprob_rows_of
from medusa_dist.engine.runner.graphed_steps import GraphedSteps, GraphSettings
from medusa_dist.engine.runner.phase_timer import PhaseTimer
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.prompt_logprobs import PromptLogprobs, gather_prompt_logprobs
from medusa_dist.engine.runner.served_model import ServedModel
from medusa_dist.engine.runner.token_choice import TokenChoice
from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import AttentionBackend, AttentionParams, StaticForm
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.forward_batch import ForwardBatch


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

    def can_be_captured(self, form: StaticForm) -> bool:
        """Whether attention in `read`, if there is any, can use the metadata of captured steps, which has this form."""

    def read(self, batch: ForwardBatch, states: Tensor) -> Tensor:
        """After a pass: states [T, H + A], the last and the aux hidden states of all its rows, padding included.

        -> [T, I], what the heads read of each row, for Scores.hidden. It is part of a captured step: what it does may
        depend on nothing but these tensors.
        """

    def keep(self, plan: Plan, tables: Ints, batch: ForwardBatch, read: Tensor) -> None:
        """After `read`, and outside of a captured step: store what the plan says of its rows. tables: as for
        prepare()."""


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
        self.choice = TokenChoice(model, max_running, kernels)
        self._reader = reader
        self._attention = attention
        attention.warm_up(pool.rows.dtype)
        self._tables: Ints = np.zeros((max_running, max_blocks), dtype=np.int64)
        self._graphs: GraphedSteps | None = None
        self.buckets: tuple[int, ...] = ()  # numbers of rows for which steps are captured

    def capture(self, settings: GraphSettings) -> None:
        """Capture steps, which all ranks do together. Raises RuntimeError if the model cannot be captured."""
        read = None if self._reader is None else self._reader.read
        self._graphs = GraphedSteps(settings, self.model, self.pool, self._attention, self.choice, read)
        self.buckets = settings.buckets

    def drop_graphs(self) -> None:
        """Forget captured steps, and free their memory."""
        self._graphs, self.buckets = None, ()

    @property
    def reader_fits(self) -> bool:
        """Whether the reader, if there is one, can be part of captured steps."""
        form = self._attention.static_form
        return self._reader is None or (form is not None and self._reader.can_be_captured(form))

    @property
    def table_shape(self) -> tuple[int, int]:
        """Most sequences, and most KV blocks of one of them."""
        max_running, max_blocks = self._tables.shape
        return max_running, max_blocks

    @torch.inference_mode()
    def execute(self, plan: Plan, clock: PhaseTimer | None = None) -> Scores | None:
        """Run one step. Rank 0 gets the scores, the others None. clock: None if the phases are not timed."""
        clock = clock or PhaseTimer()
        self._apply_deltas(plan)
        if not plan.batch_indices.size:
            self._copy(plan, None)
            clock.lap("copy")
            return Scores(np.zeros(0, dtype=np.int64), {}, torch.empty(0, self.model.hidden_size))
        if plan.graph_rows:
            return self._replay(plan, clock)
        batch = prepare(plan, self._tables, self.model.device, self._attention)
        clock.lap("prepare")
        self._copy(plan, (batch.copy_sources, batch.copy_targets))
        clock.lap("copy")
        logits, hidden = self._forward(plan, batch)
        clock.lap("forward")
        batch_indices = _batch_indices(plan)
        count = batch_indices.size
        chosen = self.choice.choose(logits[:count], batch_indices, batch.positions[batch.logits_rows])
        prompt_logprobs = self._score_prompts(plan, logits[count:])
        clock.lap("sample")
        return Scores(*chosen, hidden[:count], prompt_logprobs) if self.model.parallel.rank == 0 else None

    def _replay(self, plan: Plan, clock: PhaseTimer) -> Scores | None:
        """The same in a captured step: one upload before it, and one download after it, of the chosen tokens."""
        assert self._graphs is not None, "rank 0 asks for a captured step, and none was captured"
        self._graphs.fill(plan, self._tables)
        clock.lap("prepare")
        self._copy(plan, self._graphs.copies(plan))
        clock.lap("copy")
        logits, hidden, pairs = self._graphs.replay(plan)
        if self._reader is not None:
            self._reader.keep(plan, self._tables, self._graphs.batch(plan), hidden)
        clock.lap("forward")
        rows, prompt_rows = logits_rows_of(plan), prompt_logprob_rows_of(plan)
        chosen = self.choice.pick(pairs, logits, rows, _batch_indices(plan))
        prompt_logprobs = self._score_prompts(plan, self._take(logits, prompt_rows))
        clock.lap("sample")
        if self.model.parallel.rank != 0:
            return None
        return Scores(*chosen, self._take(hidden, rows), prompt_logprobs)

    def _take(self, values: Tensor, rows: Ints) -> Tensor:
        """Some rows of a captured step's output; the first ones without a copy."""
        if not rows.size or int(rows[-1]) == rows.size - 1:  # they ascend
            return values[: rows.size]
        return values.index_select(0, torch.from_numpy(rows).to(values.device))

    def _copy(self, plan: Plan, slots: tuple[Tensor, Tensor] | None) -> None:
        """Copy the plan's KV rows. slots: sources and targets, if they are on the device already."""
        if plan.copy_sources.size:
            sources, targets = slots or (
                torch.from_numpy(values).to(self.model.device) for values in (plan.copy_sources, plan.copy_targets)
            )
            self.pool.copy_rows(sources, targets)
            if self._reader is not None:
                self._reader.copy(plan)

    def _score_prompts(self, plan: Plan, logits: Tensor) -> PromptLogprobs | None:
        """logits: [R, Vs]; called by all ranks together."""
        if not plan.prompt_targets.size:
            return None
        num_top = int(plan.num_top_logprobs.max())
        model = self.model
        return gather_prompt_logprobs(logits, plan.prompt_targets, num_top, model.vocab_size, model.parallel)

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
                read = self._reader.read(batch, states)
                self._reader.keep(plan, self._tables, batch, read)
                hidden = read[rows]
        return logits[: rows.numel()], hidden[: rows.numel()]

    def _apply_deltas(self, plan: Plan) -> None:
        self.choice.admit(plan)
        begin = 0
        for index, kept, count in zip(plan.batch_indices, plan.num_kept_blocks, plan.num_new_blocks, strict=True):
            if count:
                self._tables[index, kept : kept + count] = plan.blocks[begin : begin + count]
                begin += count


def _batch_indices(plan: Plan) -> Ints:
    """Batch index of each logits row [W]."""
    counts = np.where(plan.needs_logits == 1, plan.num_draft_tokens + 1, 0)
    return np.repeat(plan.batch_indices, counts)
