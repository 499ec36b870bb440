"""PrefixReader: runs the heads' prefix layer over all rows of each pass, with keys and values under the base's blocks.

Owns a KV pool of one layer on rank 0, with the slots of the base model's pool: what is cached, copied, freed and
recomputed there is here too, by the same plans. Not here: the layer (medusa/heads/prefix_layer.py), drafting
(head_drafter.py).
To the pass it is one more layer: the same backend, the same metadata, so trees, chunks and the prefix cache need
nothing of their own.
"""

import torch
from torch import Tensor

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.medusa.heads.prefix_layer import PrefixLayer
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import AttentionBackend, StaticForm
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.forward_batch import ForwardBatch


class PrefixReader:
    """The RowReader of one prefix layer. Shapes: T rows of a pass, I width of what the layer reads, H hidden size."""

    def __init__(self, layer: PrefixLayer, attention: AttentionBackend, num_blocks: int) -> None:
        """num_blocks: of the base model's pool, including the scratch block."""
        self._layer, self._attention = layer, attention
        shape = layer.shape
        attention.warm_up(layer.dtype)
        self.cache = KVCache.allocate(
            *(1, shape.num_kv_heads, shape.head_dim, num_blocks, layer.dtype, layer.device),
            keys_in_columns=attention.keys_in_columns,
        )

    def copy(self, plan: Plan) -> None:
        """Copy rows between slots as the base model's are."""
        device = self._layer.device
        sources, targets = (torch.from_numpy(slots).to(device) for slots in (plan.copy_sources, plan.copy_targets))
        self.cache.copy_rows(sources, targets)

    def can_be_captured(self, form: StaticForm) -> bool:
        """Whether the layer's heads have tiles like the model's."""
        shape = self._layer.shape
        return form.fits(shape.head_dim, shape.num_heads // shape.num_kv_heads, self._layer.dtype)

    def read(self, batch: ForwardBatch, states: Tensor) -> Tensor:
        """One pass of the layer. states: [T, I] -> the states that heads start from [T, H], padding included."""
        layer = self._layer
        x = layer.fuse(states)
        queries, keys, values = layer.project(x, batch.positions)
        attended = self._attention(0, queries, keys, values, layer.params, self.cache, batch)
        return layer.finish(x, attended)

    def keep(self, plan: Plan, tables: Ints, batch: ForwardBatch, read: Tensor) -> None:
        """Nothing: the layer's pass has written all there is."""
