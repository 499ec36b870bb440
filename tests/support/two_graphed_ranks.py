"""One of two ranks over gloo whose steps are "captured" by plain calls: what rank 0 says, and the buckets of each."""

from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.graph_buckets import graph_buckets
from medusa_dist.engine.runner.graphed_steps import GraphSettings
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.startup import bootstrap
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.gpu.step_graph import PlainCall
from medusa_dist.request import Request
from tests.support.expert_twin import WITH_EXPERTS
from tests.support.graphed_rank import MOST_NODES, GraphedRank
from tests.support.tiled_twin import TiledTwin
from tests.support.tiny_engine import Setting, decode, engine_over, tiny_config

WORLD = 2


def run_rank(rank: int, folder: Path, requests: list[Request], port: int) -> None:
    """Writes folder/rank{rank}.pt: the tokens (rank 0 alone), and the bucket of each step."""
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, WORLD, 60)
    with mock.patch.object(bootstrap, "choose_kernels", lambda *_: WITH_EXPERTS):
        made = EngineRank(tiny_config(folder, tensor_parallel_size=WORLD), folder, rank, store, 0)
    old = made._ranks
    model = old.worker.model
    twin = TiledTwin(model.head_dim, model.num_heads // model.num_kv_heads, model.dtype)
    worker = Worker(model, KVCache(old.worker.pool.rows), 8, old.worker.table_shape[1], twin)
    worker.capture(GraphSettings(graph_buckets(8, MOST_NODES), 8, worker.table_shape[1], MOST_NODES, PlainCall))
    buckets: list[int] = []
    replay = worker._graphs.replay
    worker._graphs.replay = lambda plan: buckets.append(plan.graph_rows) or replay(plan)
    ranks = RankGroup(worker, old._control, old.generation)
    tokens: dict[str, tuple[int, ...]] = {}
    if rank:
        ranks.follower_loop()
    else:
        engine = made.engine
        assert engine is not None
        parts = engine.token_selector, engine.drafters, engine.policy, engine.grammars
        graphed = GraphedRank(Engine(engine.scheduler, ranks, *parts))
        found = decode(engine_over(graphed, Setting(nodes=MOST_NODES)), requests)
        tokens = {name: output.token_ids for name, output in found.outputs.items()}
        graphed.engine.stop()
    torch.save({"tokens": tokens, "buckets": buckets}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
