"""A model whose next token depends on the last one alone, by a known table: inside the real engine, without attention.

All but the network is real: scheduler, plans, worker, token selector, drafter with shared noise, trees, acceptance.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.scheduler.scheduler import Limits, Scheduler
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.block_pool import BlockPool
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.paged_cpu import PagedCpuBackend
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.outputs import Output
from medusa_dist.request import Request

CPU = torch.device("cpu")


class Alone(TPGroup):
    """One of two ranks, whose shard happens to be everything: choices are made where the logits are."""

    def gather_to_rank0(self, x: Tensor) -> list[Tensor]:
        return [x]


class MarkovModel:
    """What a worker needs of a ShardedModel. logits: [V, V], row a is what follows token a."""

    hidden_size, vocab_start, device, dtype = 1, 0, CPU, torch.float32
    head_dim = num_heads = num_kv_heads = 1

    def __init__(self, logits: Tensor, parallel: TPGroup) -> None:
        self.logits, self.parallel = logits, parallel
        self.vocab_size = self.vocab_shard = logits.shape[0]
        self.num_rows: list[int] = []  # of each pass

    def forward(self, input_ids: Tensor, _positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.num_rows.append(input_ids.numel())
        return self.logits[input_ids[rows]], torch.zeros(rows.numel(), 1)


class MarkovHeads(MedusaHeads):
    """Heads that know the table but for some error: head k guesses from the k-th power of it."""

    needs_embedding, token_ids, device = True, None, CPU

    def __init__(self, logits: Tensor, num_heads: int, error: float) -> None:
        nn.Module.__init__(self)  # there is no file to read
        self.num_heads = num_heads
        generator = torch.Generator().manual_seed(8)
        chances = torch.softmax(logits.double(), dim=-1)
        powers = [torch.linalg.matrix_power(chances, k + 1).log().float() for k in range(num_heads)]
        self._tables = torch.stack([p + error * torch.randn(p.shape, generator=generator) for p in powers])
        self.num_calls = 0

    def forward(self, _hidden: Tensor, embedding: Tensor | None) -> Tensor:
        assert embedding is not None
        self.num_calls += 1
        return self._tables[:, embedding.argmax(dim=1)].transpose(0, 1)


def random_table(vocab: int, spread: float, seed: int = 1) -> Tensor:
    return spread * torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))


def markov_engine(
    logits: Tensor,
    config: SpeculationConfig,
    *,
    heads: MarkovHeads | None,
    cost: StepCost | None = None,
    max_running: int = 64,
    max_model_len: int = 256,
    parallel: TPGroup = TPGroup(),  # noqa: B008 - frozen
) -> Engine:
    """An engine over the table. heads: None = without drafters."""
    vocab = logits.shape[0]
    num_blocks = 1 + max_running * (max_model_len // 16 + 8)
    pool = KVCache.allocate(1, 1, 1, num_blocks, torch.float32, CPU, keys_in_columns=True)
    worker = Worker(MarkovModel(logits, parallel), pool, max_running, max_model_len // 16 + 8, PagedCpuBackend())
    speculation = TreePolicy(config, cost)
    limits = Limits(
        max_running=max_running,
        max_batched_tokens=4096,
        max_model_len=max_model_len,
        vocab_size=vocab,
        eos_ids=(),
    )
    scheduler = Scheduler(limits, BlockPool(num_blocks), speculation, 0)
    drafters = {} if heads is None else {"heads": HeadDrafter(heads, torch.eye(vocab), vocab)}
    return Engine(scheduler, RankGroup(worker, None, 0), TokenSelector(vocab, (), CPU), drafters, speculation)


def finished(engine: Engine, requests: Iterator[Request]) -> Iterator[Output]:
    """Run all requests, as many at a time as the engine takes; each one's whole output as it ends."""
    going: dict[str, Output] = {}
    room = engine.scheduler.limits.max_running
    while True:
        while len(going) < room and (one := next(requests, None)) is not None:
            engine.submit(one)
            going[one.request_id] = Output(request_id=one.request_id)
        if not going:
            return
        for output in engine.step():
            whole = going.pop(output.request_id).merged(output)
            if whole.finish_reason is None:
                going[output.request_id] = whole
            else:
                yield whole
