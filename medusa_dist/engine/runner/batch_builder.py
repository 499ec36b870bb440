"""Builds the ForwardBatch of a Plan: the only place where decisions become rows.

Owns rows, positions and slot mapping. Not here: the decisions (scheduler/scheduler.py), masks and other attention
metadata (ops/attention/padded.py, ops/attention/paged_cpu.py).
Pure: the same plan and block tables give the same tensors on every rank.
"""

from dataclasses import dataclass

import numpy as np
import torch

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import Ancestry, AttentionBackend, BatchLayout
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.forward_batch import ForwardBatch

MIN_ROWS = 4  # single rows are padded: 4 rows are faster than 1 on a CPU, and kernels for 1 row round differently


@dataclass(frozen=True)
class PlanRows:
    """A plan on the host: its T rows, without padding, and their layout for attention, with padding."""

    positions: Ints  # [T]
    slot_mapping: Ints  # [T]
    layout: BatchLayout


def rows_of_plan(plan: Plan, tables: Ints, num_rows: int) -> PlanRows:
    """tables: [max_running, blocks] int64, with this plan's deltas already applied. num_rows: with padding."""
    rows = plan.num_new_tokens + plan.num_draft_tokens
    ends = np.cumsum(rows)
    offsets = ends - rows
    sequence = np.repeat(np.arange(rows.size), rows)
    local = np.arange(sequence.size) - offsets[sequence]
    kv_index = plan.num_computed_tokens[sequence] + local
    block_tables = tables[plan.batch_indices]
    slots = block_tables[sequence, kv_index // BLOCK_TOKENS] * BLOCK_TOKENS + kv_index % BLOCK_TOKENS
    trees = [Ancestry(parents) for parents in np.split(plan.parents, np.cumsum(plan.num_draft_tokens)[:-1])]
    positions = kv_index.copy()
    for s in np.flatnonzero(plan.num_draft_tokens):
        first = offsets[s] + plan.num_new_tokens[s]
        positions[first : ends[s]] = plan.num_computed_tokens[s] + plan.num_new_tokens[s] - 1 + trees[s].depths
    counts = plan.num_computed_tokens, plan.num_new_tokens, plan.num_draft_tokens
    return PlanRows(positions, slots, BatchLayout(*counts, block_tables, trees, num_rows))


def prepare(plan: Plan, tables: Ints, device: torch.device, attention: AttentionBackend) -> ForwardBatch:
    """tables: as above. The index tensors are one upload, the attention's are its own."""
    num_rows = max(MIN_ROWS, plan.token_ids.size)
    rows = rows_of_plan(plan, tables, num_rows)
    pad: Ints = np.zeros(num_rows - plan.token_ids.size, dtype=np.int64)  # padding rows write to the scratch block
    arrays = {
        "input_ids": np.concatenate([plan.token_ids, pad]),
        "positions": np.concatenate([rows.positions, pad]),
        "slot_mapping": np.concatenate([rows.slot_mapping, pad]),
        "copy_sources": plan.copy_sources,
        "copy_targets": plan.copy_targets,
        "logits_rows": logits_rows_of(plan),
        "prompt_logprob_rows": prompt_logprob_rows_of(plan),
    }
    return ForwardBatch(**_upload(arrays, device), attention=attention.metadata(rows.layout, device))


def _upload(arrays: dict[str, Ints], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays on the device, as parts of one tensor, in one copy."""
    uploaded = torch.from_numpy(np.concatenate(list(arrays.values()))).to(device)
    parts = torch.split_with_sizes(uploaded, [array.size for array in arrays.values()])
    return dict(zip(arrays, parts, strict=True))


def logits_rows_of(plan: Plan) -> Ints:
    """Rows whose logits are needed, sequence by sequence: the root's row, then the nodes'. [W]."""
    ends = np.cumsum(plan.num_new_tokens + plan.num_draft_tokens)
    counts = np.where(plan.needs_logits == 1, plan.num_draft_tokens + 1, 0)
    firsts = ends - plan.num_draft_tokens - 1  # row of the last known token
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: Ints = np.repeat(firsts, counts) + within
    return rows


def prompt_logprob_rows_of(plan: Plan) -> Ints:
    """Rows whose next prompt token needs a logprob, sequence by sequence. [R]."""
    if not plan.num_prompt_logprobs.size:
        return plan.num_prompt_logprobs
    rows = plan.num_new_tokens + plan.num_draft_tokens
    firsts = np.cumsum(rows) - rows
    within = np.arange(int(plan.num_prompt_logprobs.sum())) - np.repeat(
        np.cumsum(plan.num_prompt_logprobs) - plan.num_prompt_logprobs, plan.num_prompt_logprobs
    )
    found: Ints = np.repeat(firsts, plan.num_prompt_logprobs) + within
    return found
