"""`fused` attention for CPUs: one compiled, batch-invariant pass over the block tables.

Owns the conversion of tensors for the kernel, its compilation, and its number of threads. Not here: the arithmetic
(paged_cpu_kernel.py), when it is chosen, and the backends that are its oracles (padded.py).
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.padded import AttentionParams
from medusa_dist.ops.attention.paged_cpu_kernel import KernelParams, attend, write
from medusa_dist.ops.forward_batch import ForwardBatch, PagedMetadata
from medusa_dist.ops.numba_cache import first_calls
from medusa_dist.ops.openmp import run_shares

_BITS = {torch.float32: (torch.float32, np.float32), torch.bfloat16: (torch.int16, np.uint16)}
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


@dataclass(frozen=True)
class FusedAttention:
    """Attention of one pass: writes the new keys and values, then computes every query over the keys it may see."""

    pool: KVCache
    batch: ForwardBatch

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: AttentionParams) -> Tensor:
        """queries [T, Hq, D], keys and values [T, Hk, D] -> [T, Hq, D]. Padding rows are zeros."""
        reads = self.batch.paged
        assert reads is not None
        pool = _bits(self.pool.rows[layer])
        # The kernel checks no bounds: a mismatch would read and write outside the arrays.
        assert keys.dtype == values.dtype == self.pool.rows.dtype
        num_rows, (_, num_kv_heads, _, head_dim) = self.batch.slot_mapping.numel(), pool.shape
        assert keys.shape == values.shape == (num_rows, num_kv_heads, head_dim)
        assert queries.shape == (num_rows, queries.shape[1] // num_kv_heads * num_kv_heads, head_dim)
        assert scoring.sinks is None or scoring.sinks.shape == queries.shape[1:2]
        write(pool, self.batch.slot_mapping.numpy(), _bits(keys), _bits(values))
        out = torch.zeros(queries.shape, dtype=torch.float32)
        rules = KernelParams(
            np.float32(scoring.scale),
            scoring.window or 0,
            np.float32(scoring.softcap or 0),
            _NO_SINKS if scoring.sinks is None else scoring.sinks.float().numpy(),
        )
        q = queries.float().contiguous().numpy()
        work = partial(attend, q, pool, out.numpy(), reads, rules)
        if reads.cost * queries.shape[1] < _WORTH_SHARING:
            work(0, 1)
        else:
            run_shares(work)
        return out.to(queries.dtype)


def _bits(x: Tensor) -> Array:
    """A float32 tensor as it is, a bfloat16 one as its bits, for which numpy has no type."""
    as_torch, as_numpy = _BITS[x.dtype]
    bits: npt.NDArray[np.generic] = x.contiguous().view(as_torch).numpy().view(as_numpy)
    return bits
