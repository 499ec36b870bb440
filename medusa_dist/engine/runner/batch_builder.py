"""Builds the ForwardBatch of a Plan: the only function that turns decisions into tensors.

Owns rows, positions, slot mapping, tree masks and the grouping of sequences for attention. Not here: the decisions
(scheduler/scheduler.py), the types (ops/forward_batch.py).
Pure: the same plan and block tables give the same tensors on every rank.
"""

import numpy as np
import torch

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.medusa.trees.tree import ROOT
from medusa_dist.ops.arrays import Bools, Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.attention.padded import KEY_CHUNK
from medusa_dist.ops.forward_batch import ForwardBatch, PaddedMetadata, PagedMetadata

ROWS_OF_ITEM = 16  # rows of a sequence in one work item, which reads keys and values once for all of them
MIN_ROWS = 4  # single rows are padded: 4 rows are faster than 1 on a CPU, and kernels for 1 row round differently


def prepare(plan: Plan, tables: Ints, device: torch.device, min_queries: int | None) -> ForwardBatch:
    """tables: [max_running, blocks] int64, with this plan's deltas already applied.

    min_queries: of the padded backend (ops/attention/padded.py). None: for a backend that reads block tables itself
    (ops/attention/paged_cpu.py).
    """
    rows = plan.num_new_tokens + plan.num_draft_tokens
    ends = np.cumsum(rows)
    offsets = ends - rows
    total = int(ends[-1])
    sequence = np.repeat(np.arange(rows.size), rows)
    local = np.arange(total) - offsets[sequence]
    columns = plan.num_computed_tokens[sequence] + local
    slots = tables[plan.batch_indices[sequence], columns // BLOCK_TOKENS] * BLOCK_TOKENS + columns % BLOCK_TOKENS
    trees = [Ancestry(parents) for parents in np.split(plan.parents, np.cumsum(plan.num_draft_tokens)[:-1])]
    positions = columns.copy()
    for s in np.flatnonzero(plan.num_draft_tokens):
        first = offsets[s] + plan.num_new_tokens[s]
        positions[first : ends[s]] = plan.num_computed_tokens[s] + plan.num_new_tokens[s] - 1 + trees[s].depths
    padding = max(0, MIN_ROWS - total)

    def tensor(values: Ints, pad: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.pad(values, (0, pad))).to(device)

    groups: tuple[PaddedMetadata, ...] = ()
    if min_queries is not None:
        groups = tuple(
            _group(plan, tables, members, trees, min_queries, total + padding, device)
            for members in _similar(rows, plan.num_computed_tokens + rows, min_queries)
        )
    in_order = len(groups) == 1 and groups[0].query_rows.numel() == total + padding and (not padding or rows.size == 1)
    return ForwardBatch(
        input_ids=tensor(plan.token_ids, padding),
        positions=tensor(positions, padding),
        slot_mapping=tensor(slots, padding),  # padding rows write to the scratch block
        copy_sources=tensor(plan.copy_sources),
        copy_targets=tensor(plan.copy_targets),
        logits_rows=tensor(wanted_rows(plan)),
        prompt_logprob_rows=tensor(scored_rows(plan)),
        padded=groups,
        in_order=in_order,
        paged=_reads(plan, tables, trees) if min_queries is None else None,
    )


def wanted_rows(plan: Plan) -> Ints:
    """Rows whose logits are needed, sequence by sequence: the root's row, then the nodes'. [W]."""
    ends = np.cumsum(plan.num_new_tokens + plan.num_draft_tokens)
    counts = np.where(plan.needs_logits == 1, plan.num_draft_tokens + 1, 0)
    firsts = ends - plan.num_draft_tokens - 1  # row of the last known token
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: Ints = np.repeat(firsts, counts) + within
    return rows


def scored_rows(plan: Plan) -> Ints:
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


class Ancestry:
    """Depths [N] and ancestor matrix [N, N] (a node is its own ancestor) of one tree, computed from its parents."""

    def __init__(self, parents: Ints) -> None:
        size = parents.size
        self.depths: Ints = np.ones(size, dtype=np.int64)
        self.matrix: Bools = np.eye(size, dtype=np.bool_)
        for node, parent in enumerate(parents):
            if parent != ROOT:
                self.depths[node] = self.depths[parent] + 1
                self.matrix[node] |= self.matrix[parent]


def _reads(plan: Plan, tables: Ints, trees: list[Ancestry]) -> PagedMetadata:
    rows = plan.num_new_tokens + plan.num_draft_tokens
    lengths = plan.num_computed_tokens + rows
    ancestors = np.zeros((max(1, int(plan.num_draft_tokens.sum())), int(plan.num_draft_tokens.max())), dtype=np.bool_)
    first_nodes = np.cumsum(plan.num_draft_tokens) - plan.num_draft_tokens
    for s in np.flatnonzero(plan.num_draft_tokens):
        first, count = first_nodes[s], plan.num_draft_tokens[s]
        ancestors[first : first + count, :count] = trees[s].matrix
    pieces = -(-rows // ROWS_OF_ITEM)
    sequence = np.repeat(np.arange(rows.size), pieces)
    begin = (np.arange(sequence.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * ROWS_OF_ITEM
    end = np.minimum(begin + ROWS_OF_ITEM, rows[sequence])
    # Each thread gets a contiguous range of items. Deal the items round-robin from largest to smallest, so that all
    # ranges take about the same time.
    work = (end - begin) * (plan.num_computed_tokens[sequence] + end)
    threads = torch.get_num_threads()
    ranked = np.argsort(-work, kind="stable")
    dealt = np.concatenate([ranked[thread::threads] for thread in range(threads)])
    return PagedMetadata(
        cost=int(work.sum()),
        work_items=np.stack([sequence, begin, end], axis=1)[dealt],
        first_rows=np.cumsum(rows) - rows,
        num_computed_tokens=plan.num_computed_tokens,
        num_new_tokens=plan.num_new_tokens,
        num_draft_tokens=plan.num_draft_tokens,
        block_tables=tables[plan.batch_indices, : -(-int(lengths.max()) // BLOCK_TOKENS)],
        first_nodes=first_nodes,
        depths=np.concatenate([tree.depths for tree in trees]),
        ancestors=ancestors,
    )


def _similar(rows: Ints, lengths: Ints, min_queries: int) -> list[Ints]:
    """Group sequences to waste little padding: equal row counts and lengths after rounding up to a power of two."""
    row_class = np.ceil(np.log2(np.maximum(rows, min_queries))).astype(np.int64)
    length_class = np.ceil(np.log2(np.maximum(lengths, KEY_CHUNK))).astype(np.int64)
    key = row_class * 64 + length_class
    return [np.flatnonzero(key == value) for value in np.unique(key)]


def _group(
    plan: Plan,
    tables: Ints,
    members: Ints,
    trees: list[Ancestry],
    min_queries: int,
    num_rows: int,
    device: torch.device,
) -> PaddedMetadata:
    starts, chains, nodes = (
        plan.num_computed_tokens[members],
        plan.num_new_tokens[members],
        plan.num_draft_tokens[members],
    )
    rows = chains + nodes
    offsets = np.cumsum(plan.num_new_tokens + plan.num_draft_tokens)[members] - rows
    is_lone = plan.batch_indices.size == 1  # its padding rows may be queries too, so that the batch is in order
    width = max(int(rows.max()), min_queries, num_rows if is_lone else 0)
    num_blocks = -(-int((starts + rows).max()) // BLOCK_TOKENS)
    query = np.arange(width)
    column = np.arange(num_blocks * BLOCK_TOKENS)
    real = query < rows[:, None]
    # A known token sees all KV indices up to its own; a node sees those up to the root's, plus its ancestors (below).
    limits = np.where(real, starts[:, None] + np.minimum(query, chains[:, None] - 1) + 1, 1)
    visible = column < limits[:, :, None]
    query_positions = np.where(real, starts[:, None] + query, 0)
    key_positions = np.broadcast_to(column, (members.size, column.size)).copy()
    for b in np.flatnonzero(nodes):
        tree, known = trees[members[b]], int(starts[b] + chains[b])
        own = slice(int(chains[b]), int(rows[b]))
        drafted = slice(known, known + int(nodes[b]))
        visible[b, own, drafted] = tree.matrix
        query_positions[b, own] = key_positions[b, drafted] = known - 1 + tree.depths
    spare = np.minimum(query, num_rows) if is_lone else num_rows
    return PaddedMetadata(
        query_rows=torch.from_numpy(np.where(real, offsets[:, None] + query, spare)).to(device),
        block_tables=torch.from_numpy(tables[plan.batch_indices[members], :num_blocks].reshape(-1)).to(device),
        visible=torch.from_numpy(visible).to(device),
        query_positions=torch.from_numpy(query_positions).to(device),
        key_positions=torch.from_numpy(key_positions).to(device),
    )
