"""`paged_cpu` attention: one compiled, batch-invariant pass over the block tables.

Owns the conversion of tensors for the kernel, its compilation, and its number of threads. Not here: the arithmetic
(paged_cpu_kernel.py), when it is chosen (registry.py), the backends that are its oracles (padded.py).
"""

from contextlib import suppress
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.attention.backend import AttentionParams, BatchLayout, RotaryAngles, StaticForm
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.metadata import PagedMetadata
from medusa_dist.ops.attention.paged_cpu_kernel import KernelParams, Pool, Rows, attend, rotate_and_write
from medusa_dist.ops.cpu.arrays import bits
from medusa_dist.ops.cpu.numba_cache import first_calls
from medusa_dist.ops.cpu.openmp import run_shares, share_rows
from medusa_dist.ops.forward_batch import ForwardBatch

ROWS_OF_ITEM = 16  # rows of a sequence in one work item, which reads keys and values once for all of them
_WORTH_SHARING = 20_000  # query-key pairs; below this, waking threads costs more than it saves
_NO_SINKS = np.zeros(0, np.float32)


@cache
def compile_kernel(dtype: torch.dtype) -> None:
    """Compile the kernel for caches of this dtype (5 to 12 s) or load it from disk, so that no step waits for it."""
    shape, none = (1, BLOCK_TOKENS, 1), np.zeros(0, np.int64)
    reads = PagedMetadata(
        0, none.reshape(0, 3), none, none, none, none, none.reshape(0, 1), none, none, np.zeros((1, 0), bool)
    )
    cache = KVCache.allocate(1, 1, 1, 1, dtype, torch.device("cpu"), keys_in_columns=True)
    q, out, pool = np.zeros(shape, np.float32), bits(torch.zeros(shape, dtype=dtype)), Pool(*cache.host_layers[0])
    rows = Rows(0, (0, 0), 0, (0, 0), 0, (0, 0))
    with first_calls(attend):
        with suppress(OSError):  # a full disk: the compiled code is still in memory
            rotate_and_write(rows, 0, 0, 0, none, pool, q, 0, 0)
        with suppress(OSError):
            attend(q, pool, out, reads, KernelParams(np.float32(1), 0, np.float32(0), _NO_SINKS), 0, 1)


class PagedCpuBackend:
    """One compiled pass over the block tables. A query's result is bitwise the same in any batch."""

    tree_alignment: int | None = None
    static_form: StaticForm | None = None
    keys_in_columns = True

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile the kernel or load it from disk."""
        compile_kernel(dtype)

    def metadata(self, layout: BatchLayout, device: torch.device) -> PagedMetadata:
        """Host arrays, whatever the device: the kernel runs on the host."""
        return _metadata(layout)

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
        metadata: PagedMetadata = batch.attention
        pool = Pool(*cache.host_layers[layer])
        num_rows, (num_kv_heads, _, head_dim) = batch.slot_mapping.numel(), pool.values.shape
        # The kernel checks no bounds: a mismatch would read and write outside the arrays.
        assert cache.keys_in_columns and queries.dtype == keys.dtype == values.dtype == cache.rows.dtype
        assert keys.shape == values.shape == (num_rows, num_kv_heads, head_dim)
        assert queries.shape == (num_rows, queries.shape[1] // num_kv_heads * num_kv_heads, head_dim)
        rows, made = _rows(queries, keys, values)
        cos, sin, width = _angles(params.rotary, keys)
        q = np.empty(queries.shape, np.float32)
        work = partial(rotate_and_write, rows, cos, sin, width, batch.slot_mapping.numpy(), pool, q)
        share_rows(work, num_rows, queries.shape[1] * head_dim)
        out = torch.zeros(queries.shape, dtype=queries.dtype)
        work = partial(attend, q, pool, bits(out), metadata, _kernel_params(params, queries.shape[1]))
        if metadata.cost * queries.shape[1] < _WORTH_SHARING:
            work(0, 1)
        else:
            run_shares(work)
        del made  # the kernels have read them
        return out


def _kernel_params(params: AttentionParams, num_heads: int) -> KernelParams:
    sinks = _NO_SINKS if params.sinks is None else params.sinks.float().numpy()
    assert sinks.size in (0, num_heads)
    return KernelParams(np.float32(params.scale), params.window or 0, np.float32(params.softcap or 0), sinks)


def _angles(rotary: RotaryAngles | None, keys: Tensor) -> tuple[int, int, int]:
    """Addresses of cos and sin [T, R], and R, which is 0 if nothing of the rotary embedding is left."""
    if rotary is None:
        return 0, 0, 0
    cos, sin = rotary.cos, rotary.sin
    assert cos.dtype == sin.dtype == keys.dtype and cos.is_contiguous() and sin.is_contiguous()
    assert cos.shape == sin.shape and cos.shape[0] == keys.shape[0] and cos.shape[1] <= keys.shape[2]
    return cos.data_ptr(), sin.data_ptr(), cos.shape[1]


def _rows(*parts: Tensor) -> tuple[Rows, list[Tensor]]:
    """Queries, keys and values [T, H, D], each perhaps a part of a larger tensor; and the tensors to keep meanwhile."""
    near = [x if x.stride(2) == 1 else x.contiguous() for x in parts]
    found: list[Any] = []
    for x in near:
        found += [x.data_ptr(), (x.stride(0), x.stride(1))]
    return Rows(*found), near


def _metadata(layout: BatchLayout) -> PagedMetadata:
    rows, num_nodes = layout.rows, layout.num_draft_tokens
    ancestors = np.zeros((max(1, int(num_nodes.sum())), int(num_nodes.max())), dtype=np.bool_)
    first_nodes = np.cumsum(num_nodes) - num_nodes
    for s in np.flatnonzero(num_nodes):
        first, count = first_nodes[s], num_nodes[s]
        ancestors[first : first + count, :count] = layout.trees[s].matrix
    pieces = -(-rows // ROWS_OF_ITEM)
    sequence = np.repeat(np.arange(rows.size), pieces)
    begin = (np.arange(sequence.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * ROWS_OF_ITEM
    end = np.minimum(begin + ROWS_OF_ITEM, rows[sequence])
    # Each thread gets a contiguous range of items. Deal the items round-robin from largest to smallest, so that all
    # ranges take about the same time.
    work = (end - begin) * (layout.num_computed_tokens[sequence] + end)
    threads = torch.get_num_threads()
    ranked = np.argsort(-work, kind="stable")
    dealt = np.concatenate([ranked[thread::threads] for thread in range(threads)])
    return PagedMetadata(
        cost=int(work.sum()),
        work_items=np.stack([sequence, begin, end], axis=1)[dealt],
        first_rows=np.cumsum(rows) - rows,
        num_computed_tokens=layout.num_computed_tokens,
        num_new_tokens=layout.num_new_tokens,
        num_draft_tokens=num_nodes,
        block_tables=np.ascontiguousarray(layout.block_tables[:, : layout.used_blocks]),
        first_nodes=first_nodes,
        depths=np.concatenate([tree.depths for tree in layout.trees]),
        ancestors=ancestors,
    )
