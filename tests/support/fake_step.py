"""A captured step on fake tensors of a GPU: whatever would wait for the device, or copy from it, shows."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from medusa_dist.engine.drafters.prefix_reader import PrefixReader
from medusa_dist.engine.runner.graphed_steps import GraphSettings
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.prefix_layer import PrefixLayer
from medusa_dist.model.fused_modules import KERNELS, LayerKernels
from medusa_dist.model.load import ShardedModel, load_model
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.registry import TRITON
from medusa_dist.ops.attention.static_tiles import StaticTiles
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.attention.triton_plan import tile_shape
from medusa_dist.ops.gpu.launch import recorded
from medusa_dist.ops.tp_group import TPGroup
from tests.support.attention_cases import CPU
from tests.support.copy_count import CopyCount
from tests.support.fake_gpu import GPU, fake_gpu, like, move
from tests.support.tiny_engine import VOCAB, save_model
from tests.support.tiny_heads import random_heads

TRITONS = KERNELS[TRITON]


def fake_step(
    name: str, folder: Path, *, has_prefix: bool = False, kernels: LayerKernels | None = TRITONS
) -> tuple[list[torch.Tensor], int, list[str]]:
    """One captured step of 8 rows on fake tensors of a GPU -> its outputs, copies between devices, its kernels.

    has_prefix: with a prefix layer of heads in it. kernels: None: transformers' modules.
    There, .item(), .tolist(), unique and every shape that depends on data raise.
    """
    save_model(name, folder)
    model = load_model(folder, dtype=torch.float32, device=CPU, parallel=TPGroup(), prepack=False, kernels=kernels)
    attention = TritonBackend(model.head_dim, model.num_heads // model.num_kv_heads, model.dtype)
    pool = KVCache.allocate(model.num_layers, model.num_kv_heads, model.head_dim, 9, model.dtype, CPU)
    worker = Worker(model, pool, 4, 8, attention, kernels=True)
    worker.capture(GraphSettings((8,), 4, 8, 3, make=lambda function: SimpleNamespace(outputs=())))
    steps, buffers = worker._graphs, worker._graphs._buffers[8]
    with fake_gpu(), CopyCount() as count, recorded() as launches:
        move(model.module)
        tensors = {key: like(tensor) for key, tensor in buffers.tensors.items()}
        metadata = attention.static_form.metadata(tensors)
        if has_prefix:
            steps._read = prefix_reader(model, attention).read
        steps._model, steps._pool = replace(model, device=GPU), KVCache(like(pool.rows))
        step = steps._captured(SimpleNamespace(sizes=buffers.sizes, tensors=tensors, metadata=metadata))
        before = count.copies
        outputs = step()
    return list(outputs), count.copies - before, [launch.kernel.__name__ for launch in launches]


def prefix_reader(model: ShardedModel, attention: TritonBackend) -> PrefixReader:
    """Of a layer with the model's head shape, on the fake GPU."""
    shape = {"num_heads": model.num_heads, "num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim, "inner": 20}
    base = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=model.hidden_size, vocab_size=VOCAB)
    heads = random_heads(form="sequential", width=24, base=base, prefix=shape)
    reader = PrefixReader(PrefixLayer(heads, model.dtype, GPU), attention, 9)
    assert reader.can_be_captured(attention.static_form)
    assert not reader.can_be_captured(StaticTiles(tile_shape(256, model.dtype), 1))
    return reader
