"""Step time by number of rows on this machine, measured at start-up through all ranks.

Owns the measurement. Not here: what the curve is used for (medusa/trees/budget.py).
"""

import time
from collections.abc import Mapping

import numpy as np

from medusa_dist.config import HEADS, Config
from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.graph_buckets import bucket_for
from medusa_dist.engine.runner.plan import Op, Plan, bits_of
from medusa_dist.engine.state.block_pool import blocks_for
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS

_CONTEXT = 128  # tokens before the measured rows
_ROWS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_ROUNDS = 4
_MANY = 16  # sequences, to measure the cost of drafting per sequence


def measure_step_cost(
    ranks: RankGroup, config: Config, max_model_len: int, drafters: Mapping[str, Drafter]
) -> StepCost | None:
    """Seconds of a step by number of scored rows; None without drafters, where nothing depends on it.

    Call it before any request: it uses batch index 0 and the first KV blocks. Ends the followers' wait (Op.READY). The
    first pass at each size warms up its kernels and is not counted; without drafters, one pass of two sizes each does
    only that.
    """
    worker = ranks.worker
    columns = min(max_model_len, (worker.pool.num_blocks - 1) * BLOCK_TOKENS)
    most = min(columns, config.max_batched_tokens, config.max_running * (1 + config.speculation.most_nodes))
    sizes = [n for n in _ROWS if n <= most] or [1]
    if not drafters:
        for size in sizes[:2]:
            ranks.verify(rows_plan(ranks, size, 0))
        ranks.announce(Op.READY)
        return None
    context = min(_CONTEXT, columns - sizes[-1])
    seconds = _step_seconds(ranks, sizes, context)
    ranks.announce(Op.READY)
    if len(sizes) == 1:
        return None
    if HEADS not in drafters:
        return StepCost(tuple(sizes), tuple(seconds))
    lone, many = (drafters[HEADS].measure(count, worker.model.dtype) for count in (1, _MANY))
    each = max(0.0, (many - lone) / (_MANY - 1))
    return StepCost(tuple(sizes), tuple(seconds), max(0.0, lone - each), each)


def _step_seconds(ranks: RankGroup, sizes: list[int], context: int) -> list[float]:
    """The minimum over a few passes at each size: other load on the machine only adds time.

    All sizes are measured in turn, so that a longer disturbance affects each size once and not one size always. With
    two passes per size one after the other, 16 rows once seemed so slow that 8 more drafts appeared to be free.
    """
    rounds = [[_timed(ranks, size, context) for size in sizes] for _ in range(_ROUNDS + 1)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _timed(ranks: RankGroup, size: int, context: int) -> float:
    plan = rows_plan(ranks, size, context)
    begin = time.perf_counter()
    ranks.verify(plan)
    return time.perf_counter() - begin


def rows_plan(ranks: RankGroup, size: int, context: int) -> Plan:
    """One sequence with a context of `context` tokens, a root, and a chain of size - 1 draft tokens after it."""
    num_blocks = blocks_for(context + size)

    def one(value: int) -> Ints:
        return np.array([value], dtype=np.int64)

    return Plan(
        Op.STEP,
        ranks.generation,
        ranks.next_step(),
        graph_rows=bucket_for(ranks.worker.buckets, size),
        admitted_indices=one(0),
        admitted_seeds=one(0),
        admitted_temperatures=one(bits_of(0.0)),
        admitted_full_logits=one(0),
        batch_indices=one(0),
        num_computed_tokens=one(context),
        num_new_tokens=one(1),
        num_draft_tokens=one(size - 1),
        needs_logits=one(1),
        num_kept_blocks=one(0),
        num_new_blocks=one(num_blocks),
        token_ids=np.zeros(size, dtype=np.int64),
        parents=np.arange(-1, size - 2, dtype=np.int64),
        blocks=np.arange(1, num_blocks + 1, dtype=np.int64),
    )
