"""GraphedSteps: the whole verification, from embedding to choice of tokens, captured for each number of rows.

Owns what is captured, and how a plan runs in it. Not here: capture itself (ops/gpu/step_graph.py), the static arrays
(step_buffers.py), which bucket a plan takes (graph_buckets.py; rank 0 decides), what becomes of the choices
(worker.py).
Only data changes from step to step: composition of the batch, lengths, block tables, ancestors, seeds, temperatures.
Every row of a captured step has logits, so it does not matter which are asked for.
Shapes: N rows of the bucket, Vs this rank's shard of the vocabulary.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medusa_dist.engine.runner.batch_builder import PlanRows, rows_of_plan
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.served_model import ServedModel
from medusa_dist.engine.runner.step_buffers import StepBuffers, StepRows
from medusa_dist.engine.runner.token_choice import TokenChoice
from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import AttentionBackend, AttentionParams
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.metadata import StepSizes
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.gpu.step_graph import Captured, StepGraph

logger = logging.getLogger(__name__)

_NONE: Ints = np.zeros(0, dtype=np.int64)

GraphMaker = Callable[[Captured], StepGraph]
ReadRows = Callable[[ForwardBatch, Tensor], Tensor]


@dataclass(frozen=True)
class GraphSettings:
    """What steps are captured for. buckets: numbers of rows, ascending. most_nodes: draft tokens of a sequence. make:
    captures a function."""

    buckets: tuple[int, ...]
    max_running: int
    max_blocks: int
    most_nodes: int
    make: GraphMaker


class GraphedSteps:
    """One rank's captured steps. Made by all ranks together: their collectives are captured, too."""

    def __init__(
        self,
        settings: GraphSettings,
        model: ServedModel,
        pool: KVCache,
        attention: AttentionBackend,
        choice: TokenChoice,
        read: ReadRows | None = None,
    ) -> None:
        """read: what heads that follow all rows make of a pass, captured with it. Raises RuntimeError if the model
        cannot be captured."""
        assert attention.static_form is not None
        self._model, self._pool, self._attention, self._choice = model, pool, attention, choice
        self._read = read
        self._num_copies = settings.max_running * settings.most_nodes
        sizes = {rows: _sizes(settings, rows) for rows in settings.buckets}
        needed = [StepBuffers.needed_bytes(each, attention.static_form, self._num_copies) for each in sizes.values()]
        host = torch.zeros(max(needed), dtype=torch.uint8, pin_memory=model.device.type == "cuda")
        memory = host, host.to(model.device, copy=True)
        self._buffers = {
            rows: StepBuffers(each, attention.static_form, self._num_copies, memory) for rows, each in sizes.items()
        }
        self._graphs: dict[int, StepGraph] = {}
        for rows in reversed(settings.buckets):  # the largest first: the others find room in its memory
            self._graphs[rows] = settings.make(self._captured(self._buffers[rows]))
            logger.info("captured steps of %d rows, %d of %d", rows, len(self._graphs), len(settings.buckets))

    @property
    def graphs(self) -> dict[int, StepGraph]:
        """By their rows."""
        return self._graphs

    def fill(self, plan: Plan, tables: Ints) -> PlanRows:
        """Write the plan to its bucket's arrays and upload them. tables: with the plan's deltas applied."""
        rows = rows_of_plan(plan, tables, plan.graph_rows)
        seeds, temperatures = self._choice.noise_of(plan.batch_indices.repeat(rows.layout.rows))
        few_copies = plan.copy_sources.size <= self._num_copies
        copies = (plan.copy_sources, plan.copy_targets) if few_copies else (_NONE, _NONE)
        written = StepRows(plan.token_ids, rows.positions, rows.slot_mapping, seeds, temperatures, *copies)
        self._buffers[plan.graph_rows].fill(written, rows.layout)
        return rows

    def copies(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """The plan's KV slots to copy, as they were uploaded; None if they were too many for that."""
        count = plan.copy_sources.size
        if count > self._num_copies:
            return None
        tensors = self._buffers[plan.graph_rows].tensors
        return tensors["copy_sources"][:count], tensors["copy_targets"][:count]

    def replay(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Of all rows: logits [N, Vs], what the heads read [N, I], and pairs [N, 2] of best score and its token."""
        graph = self._graphs[plan.graph_rows]
        graph.replay()
        logits, hidden, pairs = graph.outputs
        return logits, hidden, pairs

    def batch(self, plan: Plan) -> ForwardBatch:
        """The static tensors of the plan's bucket; all rows have logits."""
        return self._batch_of(self._buffers[plan.graph_rows])

    def _batch_of(self, buffers: StepBuffers) -> ForwardBatch:
        tensors, rows = buffers.tensors, torch.arange(buffers.sizes.rows, device=self._model.device)
        return ForwardBatch(
            input_ids=tensors["input_ids"],
            positions=tensors["positions"],
            slot_mapping=tensors["slot_mapping"],
            copy_sources=rows[:0],  # copied before
            copy_targets=rows[:0],
            logits_rows=rows,
            prompt_logprob_rows=rows[:0],
            attention=buffers.metadata,
        )

    def _captured(self, buffers: StepBuffers) -> Captured:
        batch, tensors = self._batch_of(buffers), buffers.tensors

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
            return self._attention(layer, q, k, v, params, self._pool, batch)

        def step() -> tuple[Tensor, ...]:
            with torch.inference_mode(), attention_context.using(attend):
                logits, hidden = self._model.forward(batch.input_ids, batch.positions, batch.logits_rows)
                if self._read is not None:
                    hidden = self._read(batch, hidden)
                best = self._choice.best(logits, tensors["seeds"], batch.positions + 1, tensors["temperatures"])
                return logits, hidden, self._choice.pairs(*best)

        return step


def _sizes(settings: GraphSettings, rows: int) -> StepSizes:
    return StepSizes(rows, min(rows, settings.max_running), settings.max_blocks)
