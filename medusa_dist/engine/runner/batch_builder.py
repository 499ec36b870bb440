"""From a Plan to the ForwardBatch: the only function that turns decisions into tensors.

Owns rows, positions, KV slots, tree masks and how sequences are grouped for attention. Pure: same plan and block
tables, same tensors, on every rank.
"""

import numpy as np
import torch

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.medusa.trees.tree import ROOT
from medusa_dist.ops.arrays import Bools, Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.attention.padded import KEY_CHUNK
from medusa_dist.ops.forward_batch import ForwardBatch, PaddedMetadata, PagedMetadata

ROWS_OF_ITEM = 16  # rows of a sequence that one piece of work reads keys and values for
MIN_ROWS = 4  # lone rows are padded: 4 rows are faster than 1 on a CPU, and kernels for 1 row round differently


def prepare(plan: Plan, tables: Ints, device: torch.device, min_queries: int | None) -> ForwardBatch:
    """tables: [slots, blocks] int64, already holding this plan's deltas.

    min_queries: ops/attention.min_queries; None: for an attention that reads block tables itself
    (ops/attention/paged_cpu.py).
    """
    rows = plan.chains + plan.nodes
    ends = np.cumsum(rows)
    offsets = ends - rows
    total = int(ends[-1])
    sequence = np.repeat(np.arange(rows.size), rows)
    local = np.arange(total) - offsets[sequence]
    columns = plan.starts[sequence] + local
    slots = tables[plan.slots[sequence], columns // BLOCK_TOKENS] * BLOCK_TOKENS + columns % BLOCK_TOKENS
    trees = [Ancestry(parents) for parents in np.split(plan.parents, np.cumsum(plan.nodes)[:-1])]
    positions = columns.copy()
    for s in np.flatnonzero(plan.nodes):
        first = offsets[s] + plan.chains[s]
        positions[first : ends[s]] = plan.starts[s] + plan.chains[s] - 1 + trees[s].depths
    padding = max(0, MIN_ROWS - total)

    def tensor(values: Ints, pad: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.pad(values, (0, pad))).to(device)

    groups: tuple[PaddedMetadata, ...] = ()
    if min_queries is not None:
        groups = tuple(
            _group(plan, tables, members, trees, min_queries, total + padding, device)
            for members in _similar(rows, plan.starts + rows, min_queries)
        )
    in_order = len(groups) == 1 and groups[0].query_rows.numel() == total + padding and (not padding or rows.size == 1)
    return ForwardBatch(
        input_ids=tensor(plan.tokens, padding),
        positions=tensor(positions, padding),
        slots=tensor(slots, padding),  # padding rows write to the scratch block
        copy_sources=tensor(plan.copy_sources),
        copy_targets=tensor(plan.copy_targets),
        wanted=tensor(wanted_rows(plan)),
        scored=tensor(scored_rows(plan)),
        groups=groups,
        in_order=in_order,
        reads=_reads(plan, tables, trees) if min_queries is None else None,
    )


def wanted_rows(plan: Plan) -> Ints:
    """Rows whose scores are wanted, sequence after sequence: the root's, then the nodes'. [W]."""
    ends = np.cumsum(plan.chains + plan.nodes)
    counts = np.where(plan.wanted == 1, plan.nodes + 1, 0)
    firsts = ends - plan.nodes - 1  # the last known token's row
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: Ints = np.repeat(firsts, counts) + within
    return rows


def scored_rows(plan: Plan) -> Ints:
    """Rows whose following prompt tokens are scored, sequence after sequence. [R]."""
    if not plan.scored.size:
        return plan.scored
    rows = plan.chains + plan.nodes
    firsts = np.cumsum(rows) - rows
    within = np.arange(int(plan.scored.sum())) - np.repeat(np.cumsum(plan.scored) - plan.scored, plan.scored)
    found: Ints = np.repeat(firsts, plan.scored) + within
    return found


class Ancestry:
    """Depths [N] and ancestor matrix [N, N] (a node is its own ancestor) of one tree, from its parents."""

    def __init__(self, parents: Ints) -> None:
        size = parents.size
        self.depths: Ints = np.ones(size, dtype=np.int64)
        self.matrix: Bools = np.eye(size, dtype=np.bool_)
        for node, parent in enumerate(parents):
            if parent != ROOT:
                self.depths[node] = self.depths[parent] + 1
                self.matrix[node] |= self.matrix[parent]


def _reads(plan: Plan, tables: Ints, trees: list[Ancestry]) -> PagedMetadata:
    rows = plan.chains + plan.nodes
    lengths = plan.starts + rows
    ancestors = np.zeros((max(1, int(plan.nodes.sum())), int(plan.nodes.max())), dtype=np.bool_)
    first_nodes = np.cumsum(plan.nodes) - plan.nodes
    for s in np.flatnonzero(plan.nodes):
        first, count = first_nodes[s], plan.nodes[s]
        ancestors[first : first + count, :count] = trees[s].matrix
    pieces = -(-rows // ROWS_OF_ITEM)
    sequence = np.repeat(np.arange(rows.size), pieces)
    begin = (np.arange(sequence.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * ROWS_OF_ITEM
    end = np.minimum(begin + ROWS_OF_ITEM, rows[sequence])
    # Threads get contiguous shares: deal items out from the most work to the least, so that shares cost alike.
    work = (end - begin) * (plan.starts[sequence] + end)
    threads = torch.get_num_threads()
    ranked = np.argsort(-work, kind="stable")
    dealt = np.concatenate([ranked[thread::threads] for thread in range(threads)])
    return PagedMetadata(
        cost=int(work.sum()),
        items=np.stack([sequence, begin, end], axis=1)[dealt],
        rows=np.cumsum(rows) - rows,
        starts=plan.starts,
        chains=plan.chains,
        nodes=plan.nodes,
        tables=tables[plan.slots, : -(-int(lengths.max()) // BLOCK_TOKENS)],
        first_nodes=first_nodes,
        depths=np.concatenate([tree.depths for tree in trees]),
        ancestors=ancestors,
    )


def _similar(rows: Ints, lengths: Ints, min_queries: int) -> list[Ints]:
    """Sequences in groups that waste little padding: equal row counts and lengths up to a power of two."""
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
    starts, chains, nodes = plan.starts[members], plan.chains[members], plan.nodes[members]
    rows = chains + nodes
    offsets = np.cumsum(plan.chains + plan.nodes)[members] - rows
    is_lone = plan.slots.size == 1  # its padding may be queries, too, so that the pass is in order
    width = max(int(rows.max()), min_queries, num_rows if is_lone else 0)
    num_blocks = -(-int((starts + rows).max()) // BLOCK_TOKENS)
    query = np.arange(width)
    column = np.arange(num_blocks * BLOCK_TOKENS)
    real = query < rows[:, None]
    # A known token sees all columns up to its own; a node sees those up to the root's, and its ancestors (below).
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
        blocks=torch.from_numpy(tables[plan.slots[members], :num_blocks].reshape(-1)).to(device),
        visible=torch.from_numpy(visible).to(device),
        query_positions=torch.from_numpy(query_positions).to(device),
        key_positions=torch.from_numpy(key_positions).to(device),
    )
