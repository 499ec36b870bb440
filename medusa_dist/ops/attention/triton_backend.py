"""`triton` attention: kernels that read the block tables, without a copy of the keys and values.

Owns the launches. Not here: the kernels (ops/gpu/attention_kernel.py, ops/gpu/kv_kernel.py), the cut of a batch into
tiles (triton_plan.py), when it is chosen (registry.py).
"""

import math

import torch
from torch import Tensor

from medusa_dist.ops.attention.backend import AttentionParams, BatchLayout, StaticForm
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.static_tiles import FixedTiles, StaticTiles
from medusa_dist.ops.attention.triton_plan import TiledBatch, tile_shape
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.gpu.attention_kernel import attend_tiles, merge_splits
from medusa_dist.ops.gpu.kv_kernel import write_kv
from medusa_dist.ops.gpu.language import padded
from medusa_dist.ops.gpu.launch import KernelLaunch

_LOG2E = 1.4426950408889634


class TritonBackend:
    """Two launches per layer, three where contexts are long and rows are few. A query's result is bitwise the same
    whatever other sequences are in the batch, and however its prompt is cut into chunks."""

    tree_alignment: int | None = None
    keys_in_columns = False

    def __init__(self, head_dim: int, queries_per_head: int, dtype: torch.dtype) -> None:
        self._model = tile_shape(head_dim, dtype), queries_per_head
        self.static_form: StaticForm | None = StaticTiles(*self._model)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Nothing: kernels are compiled at their first launch, and steps run before a service is ready."""

    def metadata(self, layout: BatchLayout, device: torch.device) -> TiledBatch:
        """Tiles and ancestor words of the model's layers, in one upload."""
        batch = TiledBatch(layout, device)
        batch.tiles(*self._model)
        return batch

    def __call__(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        params: AttentionParams,
        cache: KVCache,
        batch: ForwardBatch,
    ) -> Tensor:
        """queries [T, Hq, D], keys and values [T, Hk, D] -> [T, Hq, D]. Padding rows are zeros."""
        angles = None if params.rotary is None else (params.rotary.cos, params.rotary.sin)
        planes = cache.rows.select(0, layer)
        rotated = write_kv(queries, keys, values, batch.slot_mapping, planes, angles)
        return _attend(rotated, params, planes, batch)


def _attend(queries: Tensor, params: AttentionParams, planes: Tensor, batch: ForwardBatch) -> Tensor:
    """planes: [2, Hk, slots, D], keys and values of the layer."""
    num_rows, num_heads, head_dim = queries.shape
    num_kv_heads = planes.shape[1]
    tiled: TiledBatch | FixedTiles = batch.attention
    shape = tile_shape(head_dim, queries.dtype)
    tiles = tiled.tiles(shape, num_heads // num_kv_heads)
    assert queries.stride(-1) == 1 and batch.positions.numel() == num_rows == tiles.words.shape[0]
    out = queries.new_empty(queries.shape)
    rows = tiles.num_scratch_rows
    partial = queries.new_empty((num_kv_heads, max(rows, 1), head_dim), dtype=torch.float32)
    norms = queries.new_empty((num_kv_heads, 2, max(rows, 1)), dtype=torch.float32)
    sinks = norms if params.sinks is None else params.sinks.float()
    keys, values = planes.unbind(0)
    shared = {"out": out, "sequences": tiles.sequences, "sinks": sinks, "partial": partial, "norms": norms}
    sizes = {
        **{"HEAD_DIM": head_dim, "PADDED_DIM": padded(head_dim, 16), "PER_HEAD": num_heads // num_kv_heads},
        **{"NUM_HEADS": num_heads, "TILE_M": shape.pairs, "HAS_SINKS": params.sinks is not None},
    }
    scale, softcap = _base2_factors(params)
    KernelLaunch(
        attend_tiles,
        (tiles.items.shape[0], num_kv_heads),
        {
            **{"queries": queries, "keys": keys, "values": values, **shared},
            **{"tables": tiles.block_tables, "items": tiles.items, "words": tiles.words, "positions": batch.positions},
            **{"scale": scale, "softcap": softcap, "window": params.window or 0, "num_words": tiles.words.shape[1]},
            **{"table_width": tiles.block_tables.shape[1], "query_stride": queries.stride(0)},
            **{"query_head_stride": queries.stride(1), "kv_head_stride": planes.stride(1), "num_partial": rows},
        },
        {
            **sizes,
            **{"TILE_N": shape.keys, "SPLIT": shape.split, "BLOCK_TOKENS": BLOCK_TOKENS},
            **{"HAS_WINDOW": params.window is not None, "HAS_SOFTCAP": params.softcap is not None},
            "PRECISION": "ieee",
        },
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    ).run()
    merges = tiles.merges
    KernelLaunch(
        merge_splits, (merges.shape[0], num_kv_heads), {**shared, "merges": merges, "num_partial": rows}, sizes
    ).run()
    return out


def _base2_factors(params: AttentionParams) -> tuple[float, float]:
    """scale and softcap as the kernel reads them: its scores are in base 2, for exp2."""
    if params.softcap is None:
        return params.scale * _LOG2E, math.inf
    return params.scale / params.softcap, params.softcap * _LOG2E
