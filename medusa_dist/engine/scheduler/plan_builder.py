"""Builds the Plan that broadcasts the scheduler's decisions to all ranks.

Owns the order of a plan's arrays, and block table deltas (only blocks new to the ranks). Not here: the decisions
(scheduler.py), the wire format (runner/plan.py).
"""

from collections.abc import Iterable

import numpy as np

from medusa_dist.engine.runner.graph_buckets import EAGER, bucket_for
from medusa_dist.engine.runner.plan import Op, Plan, bits_of
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.ops.arrays import Ints


def build_plan(
    when: tuple[int, int],
    chosen: list[tuple[Sequence, int]],
    admitted: list[Sequence],
    copies: tuple[Ints, Ints],
    graph_buckets: tuple[int, ...] = (),
) -> Plan:
    """when: (generation, step). chosen: (sequence, known tokens to compute), its tree already set. copies: KV slots."""
    tokens: list[int] = []
    blocks: list[int] = []
    targets: list[int] = []
    for sequence, num_new in chosen:
        start = sequence.num_computed_tokens
        tokens += (*sequence.tokens[start : start + num_new], *sequence.tree.tokens)
        blocks += sequence.block_table[sequence.num_broadcast_blocks :]
        targets += sequence.tokens[start + 1 : start + 1 + sequence.count_prompt_logprobs(num_new)]
    sequences = [sequence for sequence, _ in chosen]
    params = [s.request.params for s in admitted]
    return Plan(
        Op.STEP,
        *when,
        graph_rows=bucket_for(graph_buckets, len(tokens)) if sequences else EAGER,
        admitted_indices=_ints(s.batch_index for s in admitted),
        admitted_seeds=_ints(s.request.seed for s in admitted),
        admitted_temperatures=_ints(bits_of(p.temperature) for p in params),
        admitted_full_logits=_ints(int(p.needs_full_logits) for p in params),
        batch_indices=_ints(s.batch_index for s in sequences),
        num_computed_tokens=_ints(s.num_computed_tokens for s in sequences),
        num_new_tokens=_ints(num_new for _, num_new in chosen),
        num_draft_tokens=_ints(len(s.tree) for s in sequences),
        needs_logits=_ints(int(num_new == s.num_uncomputed_tokens) for s, num_new in chosen),
        num_prompt_logprobs=_ints(s.count_prompt_logprobs(num_new) for s, num_new in chosen if targets),
        num_top_logprobs=_ints(s.request.params.prompt_logprobs or 0 for s in sequences if targets),
        prompt_targets=_ints(targets),
        num_kept_blocks=_ints(s.num_broadcast_blocks for s in sequences),
        num_new_blocks=_ints(len(s.block_table) - s.num_broadcast_blocks for s in sequences),
        token_ids=_ints(tokens),
        parents=_ints(parent for s in sequences for parent in s.tree.parents),
        blocks=_ints(blocks),
        copy_sources=copies[0],
        copy_targets=copies[1],
    )


def _ints(values: Iterable[int]) -> Ints:
    return np.array(list(values), dtype=np.int64)
