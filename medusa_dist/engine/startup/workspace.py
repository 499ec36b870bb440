"""Peak activation memory of the largest step, measured at start-up.

Owns that step and the measurement of its peak. Not here: how the number is used (kv_sizing.py), step times
(step_cost.py).
The largest step has as many rows as a step may have, after as long a context as fits; logits for all drafts of all
sequences, all gathered in full to rank 0; prompt logprobs for the rest of the rows; and the heads run for all
sequences. What attention gathers for other sequences grows with the cache and is counted with it
(kv_sizing.gathered_block_bytes).
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from medusa_dist.config import Config
from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.plan import Op, Plan
from medusa_dist.engine.startup.step_cost import rows_plan
from medusa_dist.engine.state.block_pool import blocks_for
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.sampling_fields import MAX_LOGPROBS

_MARGIN = 1.1  # allocator fragmentation
_CHOICE_COPIES = 4  # full rows that selection allocates for each: adjusted scores, sorted ones, noise, their sum


class PeakMeter:
    """Peak bytes that torch allocated on a GPU since `start`, beyond what was allocated then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        """Restart the measurement."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def read(self) -> int:
        """The peak so far."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - self._before


def profile_blocks(config: Config, max_model_len: int, block_bytes: int, free_bytes: int) -> int:
    """Blocks of the small cache used for profiling, without the scratch block: one sequence, in at most a quarter of
    the free memory, and never fewer than the rows of a step need."""
    longest = blocks_for(max_model_len + config.speculation.most_nodes)
    return max(blocks_for(config.max_batched_tokens), min(longest, free_bytes // 4 // block_bytes))


def worst_plan(ranks: RankGroup, config: Config) -> Plan:
    """The step described above, for batch index 0 and all blocks of the cache."""
    worker = ranks.worker
    columns = (worker.pool.num_blocks - 1) * BLOCK_TOKENS
    size = min(config.max_batched_tokens, columns)
    num_wanted = min(size, config.max_running * (1 + config.speculation.most_nodes))
    plan = rows_plan(ranks, size, columns - size)
    return replace(
        plan,
        admitted_full_logits=np.ones(1, dtype=np.int64),
        num_new_tokens=np.array([size - num_wanted + 1], dtype=np.int64),
        num_draft_tokens=np.array([num_wanted - 1], dtype=np.int64),
        parents=plan.parents[: num_wanted - 1],
        num_prompt_logprobs=np.array([size - num_wanted], dtype=np.int64),
        num_top_logprobs=np.array([MAX_LOGPROBS], dtype=np.int64),
        prompt_targets=np.zeros(size - num_wanted, dtype=np.int64),
    )


def workspace_bytes(ranks: RankGroup, config: Config, drafters: Iterable[Drafter], meter: PeakMeter) -> int:
    """Bytes of workspace that this rank needs; called by all ranks together, with a cache of profile_blocks blocks
    each.

    Ends the followers' wait (Op.READY).
    """
    model = ranks.worker.model
    meter.start()
    if model.parallel.rank != 0:
        ranks.follower_loop(until=Op.READY)
        return int(_MARGIN * meter.read())
    ranks.verify(worst_plan(ranks, config))
    ranks.announce(Op.READY)
    for drafter in drafters:
        drafter.measure(config.max_running, model.dtype, num_rounds=1)
    choice = _CHOICE_COPIES * config.max_running * model.vocab_size * torch.float32.itemsize
    return int(_MARGIN * meter.read()) + choice
