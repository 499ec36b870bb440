"""What a step costs on this machine, by its rows: measured at start, through the real ranks.

Owns the measurement. Not here: what the curve is used for (medusa/trees/budget.py).
"""

import time

import numpy as np

from medusa_dist.config import Config
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.plan import Op, Plan, bits_of
from medusa_dist.engine.spec.drafter import Drafter
from medusa_dist.engine.state.block_pool import blocks_for
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS

_CONTEXT = 128  # tokens before the measured rows
_ROWS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_ROUNDS = 4
_MANY = 16  # sequences, to see what drafting costs for each


def measure_step_cost(ranks: RankGroup, config: Config, max_model_len: int, drafter: Drafter | None) -> StepCost | None:
    """Seconds of a step with so many scored rows; None without heads, where nothing depends on it.

    Before any request: uses slot 0 and the pool's first blocks. Ends the followers' wait (Op.READY). The first pass at
    each size warms its kernels up and is not counted; without heads one pass of each of two sizes does just that.
    """
    worker = ranks.worker
    columns = min(max_model_len, (worker.pool.num_blocks - 1) * BLOCK_TOKENS)
    most = min(columns, config.max_batched_tokens, config.max_running * (1 + config.speculation.most_nodes))
    sizes = [n for n in _ROWS if n <= most] or [1]
    if drafter is None:
        for size in sizes[:2]:
            ranks.verify(rows_plan(ranks, size, 0))
        ranks.announce(Op.READY)
        return None
    context = min(_CONTEXT, columns - sizes[-1])
    seconds = _step_seconds(ranks, sizes, context)
    ranks.announce(Op.READY)
    if len(sizes) == 1:
        return None
    lone, many = (drafter.measure(count, worker.model.dtype) for count in (1, _MANY))
    each = max(0.0, (many - lone) / (_MANY - 1))
    return StepCost(tuple(sizes), tuple(seconds), max(0.0, lone - each), each)


def _step_seconds(ranks: RankGroup, sizes: list[int], context: int) -> list[float]:
    """The least of a few passes at each size: other work on the machine only ever adds.

    All sizes in turn, so that a disturbance that lasts meets each once and not one size always: with two passes one
    after the other, 16 rows once seemed so dear that 8 drafts more were thought to cost nothing.
    """
    rounds = [[_timed(ranks, size, context) for size in sizes] for _ in range(_ROUNDS + 1)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _timed(ranks: RankGroup, size: int, context: int) -> float:
    plan = rows_plan(ranks, size, context)
    begin = time.perf_counter()
    ranks.verify(plan)
    return time.perf_counter() - begin


def rows_plan(ranks: RankGroup, size: int, context: int) -> Plan:
    """One sequence of `context` tokens with a root and a chain of size - 1 drafted nodes behind it."""
    num_blocks = blocks_for(context + size)

    def one(value: int) -> Ints:
        return np.array([value], dtype=np.int64)

    return Plan(
        Op.STEP,
        ranks.generation,
        ranks.next_step(),
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
