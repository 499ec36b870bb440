"""An engine's rank whose steps are "captured" on a CPU: a plain call stands for the graph, a twin for the kernels."""

from dataclasses import dataclass

import torch

from medusa_dist.config import HEADS
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.graphed_steps import GraphMaker, GraphSettings
from medusa_dist.engine.runner.step_buffers import StepBuffers
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.gpu.step_graph import PlainCall
from tests.support.tiled_twin import TiledTwin

MOST_NODES = 15


@dataclass
class GraphedRank:
    """In the place of an EngineRank, for engine_over."""

    engine: Engine


def twin_worker(rank: EngineRank, max_running: int = 8) -> Worker:
    """A worker with the rank's model, cache and heads, launching one by one. Heads that follow all rows follow those of
    the last worker that was made."""
    assert rank.engine is not None
    old = rank.engine.ranks.worker
    model = old.model
    twin = TiledTwin(model.head_dim, model.num_heads // model.num_kv_heads, model.dtype)
    heads = rank.engine.drafters.get(HEADS)
    reader = None if heads is None else heads.follow_rows(old.pool.num_blocks, twin)
    return Worker(model, KVCache(old.pool.rows), max_running, old.table_shape[1], twin, reader)


def graphed(rank: EngineRank, buckets: tuple[int, ...], make: GraphMaker = PlainCall) -> GraphedRank:
    """buckets: (): nothing is captured."""
    worker = twin_worker(rank)
    if buckets:
        worker.capture(GraphSettings(buckets, 8, worker.table_shape[1], MOST_NODES, make))
    old = rank.engine
    assert old is not None
    ranks = RankGroup(worker, None, old.ranks.generation)
    engine = Engine(old.scheduler, ranks, old.token_selector, old.drafters, old.policy, old.grammars)
    return GraphedRank(engine)


def poison(worker: Worker) -> None:
    """Fill all static tensors with NaN or -1: what the next step does not write, or computes from old data, shows."""
    assert worker._graphs is not None
    for buffers in worker._graphs._buffers.values():
        poison_buffers(buffers)
    for graph in worker._graphs.graphs.values():
        for output in graph.outputs:
            output.fill_(torch.nan)


def poison_buffers(buffers: StepBuffers) -> None:
    for memory in (buffers._host, buffers._device):
        memory.fill_(0xFF)
