"""`paged_cpu` attention: one compiled, batch-invariant pass over the block tables.

Owns the conversion of tensors for the kernel, its compilation, and its number of threads. Not here: the arithmetic
(paged_cpu_kernel.py), when it is chosen (registry.py), the backends that are its oracles (padded.py).
"""

from contextlib import suppress
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.attention.backend import AttentionParams, BatchLayout
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.metadata import PagedMetadata
from medusa_dist.ops.attention.paged_cpu_kernel import KernelParams, attend, write
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.numba_cache import first_calls
from medusa_dist.ops.openmp import run_shares

_BITS = {torch.float32: (torch.float32, np.float32), torch.bfloat16: (torch.int16, np.uint16)}
KERNEL_DTYPES = frozenset(_BITS)  # of the KV cache
ROWS_OF_ITEM = 16  # rows of a sequence in one work item, which reads keys and values once for all of them
_WORTH_SHARING = 20_000  # query-key pairs; below this, waking threads costs more than it saves
_NO_SINKS = np.zeros(0, np.float32)


@cache
def compile_kernel(dtype: torch.dtype) -> None:
    """Compile the kernel for caches of this dtype (4 to 10 s) or load it from disk, so that no step waits for it."""
    shape, none = (1, BLOCK_TOKENS, 1), np.zeros(0, np.int64)
    reads = PagedMetadata(
        0, none.reshape(0, 3), none, none, none, none, none.reshape(0, 1), none, none, np.zeros((1, 0), bool)
    )
    pool, rows = _bits(torch.zeros(2, *shape, dtype=dtype)), _bits(torch.zeros(shape, dtype=dtype))
    q = np.zeros(shape, np.float32)
    with first_calls(attend):
        with suppress(OSError):  # a full disk: the compiled code is still in memory
            write(pool, none, rows, rows)
        with suppress(OSError):
            attend(q, pool, q, reads, KernelParams(np.float32(1), 0, np.float32(0), _NO_SINKS), 0, 1)


class PagedCpuBackend:
    """One compiled pass over the block tables. A query's result is bitwise the same in any batch."""

    tree_alignment: int | None = None

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
        queries, keys = params.rotated(queries, keys)
        metadata: PagedMetadata = batch.attention
        pool = _bits(cache.rows[layer])
        # The kernel checks no bounds: a mismatch would read and write outside the arrays.
        assert keys.dtype == values.dtype == cache.rows.dtype
        num_rows, (_, num_kv_heads, _, head_dim) = batch.slot_mapping.numel(), pool.shape
        assert keys.shape == values.shape == (num_rows, num_kv_heads, head_dim)
        assert queries.shape == (num_rows, queries.shape[1] // num_kv_heads * num_kv_heads, head_dim)
        assert params.sinks is None or params.sinks.shape == queries.shape[1:2]
        write(pool, batch.slot_mapping.numpy(), _bits(keys), _bits(values))
        out = torch.zeros(queries.shape, dtype=torch.float32)
        kernel_params = KernelParams(
            np.float32(params.scale),
            params.window or 0,
            np.float32(params.softcap or 0),
            _NO_SINKS if params.sinks is None else params.sinks.float().numpy(),
        )
        q = queries.float().contiguous().numpy()
        work = partial(attend, q, pool, out.numpy(), metadata, kernel_params)
        if metadata.cost * queries.shape[1] < _WORTH_SHARING:
            work(0, 1)
        else:
            run_shares(work)
        return out.to(queries.dtype)


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


def _bits(x: Tensor) -> Array:
    """A float32 tensor as it is, a bfloat16 one as its bits, for which numpy has no type."""
    as_torch, as_numpy = _BITS[x.dtype]
    bits: npt.NDArray[np.generic] = x.contiguous().view(as_torch).numpy().view(as_numpy)
    return bits
