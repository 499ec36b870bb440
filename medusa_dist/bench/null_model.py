"""A model and heads that do nothing, and an engine around them: what is left of a step is the engine's own time.

Owns what they answer. Not here: measuring (null_bench.py).
The next token is read from a table, the heads' guesses from others, which are right now and then. All that is computed
for a row is a few lookups among 256 tokens, and its noise: in the captured part of a step, which is not counted.
Everything around it is as it is served on a GPU: scheduling, the draft policy with its costs, block tables and tiles
for the Triton kernels, acceptance, outputs. The heads' own launches are left out, too.
"""

import numpy as np
import torch
from torch import Tensor

from medusa_dist.config import HEADS, LOOKUP, SpeculationConfig
from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.drafters.lookup_drafter import LookupDrafter
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.graph_buckets import graph_buckets
from medusa_dist.engine.runner.graphed_steps import GraphSettings
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for
from medusa_dist.engine.state.limits import Limits
from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.levels import Growth
from medusa_dist.ops.arrays import Floats, Ints
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.gpu.step_graph import PlainCall
from medusa_dist.ops.tp_group import TPGroup

VOCAB = 256
_CPU = torch.device("cpu")
_NUM_HEADS = 4
_SKILL = 0.4  # share of positions where a head's best guess is right
# Steps take so long that rows and heads are as good as free, so that the policy verifies what it is allowed to,
# whatever else the machine does; its own work is the usual.
_STEP = StepCost((1, 4096), (10.0, 10.001), draft_s=0.001)


class NullModel:
    """One rank; the token after t is _after[t], whatever comes before it."""

    parallel = TPGroup()
    device, dtype = _CPU, torch.float32
    hidden_size = vocab_size = vocab_shard = VOCAB
    vocab_start = 0

    def __init__(self) -> None:
        self._states = torch.eye(VOCAB)
        self._logits = torch.eye(VOCAB)[_after(1)]

    def forward(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Two lookups."""
        tokens = input_ids[rows]
        return self._logits[tokens], self._states[tokens]

    def forward_all_rows(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Two lookups."""
        return self._logits[input_ids[rows]], self._states[input_ids]


class NullHeadDrafter(HeadDrafter):
    """Heads whose guesses are ready, by the root's token: what a GPU would compute for them is left out."""

    def __init__(self) -> None:
        base = BaseModelFacts(name="null", fingerprint=None, hidden_size=VOCAB, vocab_size=VOCAB)
        about = HeadsDescription(
            form="hidden", num_heads=_NUM_HEADS, bias=False, dtype="float32", offsets=(1, 2, 3, 4), base=base
        )
        blocks = {f"heads.{head}.blocks.0.weight": torch.zeros(VOCAB, VOCAB) for head in range(_NUM_HEADS)}
        super().__init__(MedusaHeads(HeadsFile(about, blocks), torch.eye(VOCAB), torch.float32, _CPU), None, VOCAB)
        self._guesses, self._confidences = _guesses(self.top_k)

    def _guess(
        self, hidden: Tensor, roots: Tensor, chance: tuple[Tensor, Tensor | None], growth: Growth
    ) -> list[Candidates]:
        ids = roots.numpy()
        return [Candidates(*pair) for pair in zip(self._guesses[ids], self._confidences[ids], strict=True)]


def null_engine(batch: int, max_nodes: int, max_model_len: int) -> Engine:
    """An engine with heads and lookup for `batch` sequences."""
    config = SpeculationConfig(max_nodes=max_nodes, min_accepted=0.0)
    num_blocks = 1 + batch * blocks_for(max_model_len + max_nodes)
    pool = KVCache.allocate(1, 1, 1, num_blocks, torch.float32, _CPU)
    attention = TritonBackend(128, 4, torch.bfloat16)
    max_blocks = blocks_for(max_model_len + max_nodes)
    worker = Worker(NullModel(), pool, batch, max_blocks, attention)
    buckets = graph_buckets(batch, max_nodes)
    worker.capture(GraphSettings(buckets, batch, max_blocks, max_nodes, PlainCall))
    policy = TreePolicy(config, _STEP, attention.tree_alignment)
    limits = Limits(
        batch,
        max_batched_tokens=8192,
        max_model_len=max_model_len,
        vocab_size=VOCAB,
        eos_ids=(),
        graph_buckets=buckets,
    )
    scheduler = Scheduler(limits, BlockPool(num_blocks), policy, generation=0)
    drafters: dict[str, Drafter] = {HEADS: NullHeadDrafter(), LOOKUP: LookupDrafter(max_nodes)}
    return Engine(scheduler, RankGroup(worker, None, 0), TokenSelector(VOCAB, (), _CPU), drafters, policy)


def _after(steps: int) -> Tensor:
    """[V]: the token that comes `steps` after each. All tokens are one cycle, so that nothing repeats soon."""
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    after = torch.empty(VOCAB, dtype=torch.int64)
    after[order] = order.roll(-steps)
    return after


def _guesses(top_k: int) -> tuple[Ints, Floats]:
    """[V, heads, top_k]: guesses after each token, and confidences. The truth is a head's best guess at _SKILL of the
    tokens, and its second elsewhere."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCAB, size=(VOCAB, _NUM_HEADS, top_k))
    confidences: Floats = np.sort(rng.random((VOCAB, _NUM_HEADS, top_k), dtype=np.float32))[..., ::-1] / np.float32(
        top_k
    )
    for head in range(_NUM_HEADS):
        is_best = rng.random(VOCAB) < _SKILL
        tokens[np.arange(VOCAB), head, np.where(is_best, 0, 1)] = _after(head + 1).numpy()
        confidences[:, head, 0] = np.where(is_best, 0.7, 0.3)
    return tokens, confidences
