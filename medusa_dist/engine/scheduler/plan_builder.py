"""Builds the Plan that broadcasts the scheduler's decisions to all ranks.

Owns the order of a plan's arrays, and block table deltas (only blocks new to the ranks). Not here: the decisions
(scheduler.py), the wire format (runner/plan.py).
"""

import numpy as np

from medusa_dist.engine.runner.plan import Op, Plan, bits_of
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.ops.arrays import Ints


def build_plan(
    when: tuple[int, int],
    chosen: list[tuple[Sequence, int]],
    admitted: list[Sequence],
    copies: tuple[Ints, Ints],
) -> Plan:
    """when: (generation, step). chosen: (sequence, known tokens to compute), its tree already set. copies: KV slots.

    Marks the sequences' blocks as broadcast.
    """
    tokens: list[int] = []
    blocks: list[int] = []
    targets: list[int] = []
    table: list[tuple[int, ...]] = []
    for sequence, num_new in chosen:
        start, tree = sequence.num_computed_tokens, sequence.tree
        tokens += sequence.tokens[start : start + num_new]
        tokens += tree.tokens
        kept = sequence.num_broadcast_blocks
        blocks += sequence.block_table[kept:]
        is_wanted = start + num_new == len(sequence.tokens)
        scored = sequence.count_prompt_logprobs(num_new)
        targets += sequence.tokens[start + 1 : start + 1 + scored]
        shape = (sequence.batch_index, start, num_new, len(tree), is_wanted, kept, len(sequence.block_table) - kept)
        table.append((*shape, scored, sequence.request.params.prompt_logprobs or 0))
        sequence.num_broadcast_blocks = len(sequence.block_table)
    indices, computed, new_tokens, drafts, needs_logits, kept_blocks, new_blocks, scored_rows, tops = (
        np.array(table, dtype=np.int64).reshape(-1, 9).T.copy()
    )
    params = [s.request.params for s in admitted]
    return Plan(
        Op.STEP,
        *when,
        admitted_indices=_ints([s.batch_index for s in admitted]),
        admitted_seeds=_ints([s.request.seed for s in admitted]),
        admitted_temperatures=_ints([bits_of(p.temperature) for p in params]),
        admitted_full_logits=_ints([int(p.needs_full_logits) for p in params]),
        batch_indices=indices,
        num_computed_tokens=computed,
        num_new_tokens=new_tokens,
        num_draft_tokens=drafts,
        needs_logits=needs_logits,
        num_prompt_logprobs=scored_rows if targets else _ints([]),
        num_top_logprobs=tops if targets else _ints([]),
        prompt_targets=_ints(targets),
        num_kept_blocks=kept_blocks,
        num_new_blocks=new_blocks,
        token_ids=_ints(tokens),
        parents=_ints([parent for sequence, _ in chosen for parent in sequence.tree.parents]),
        blocks=_ints(blocks),
        copy_sources=copies[0],
        copy_targets=copies[1],
    )


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)
