"""Attention on a CPU in one compiled pass over the block tables (`fused`), the same results for a query in any batch.

Owns when it can be used, how tensors become what the kernel reads, and on how many threads it runs. Not here: the
arithmetic (ops/fused_kernel.py), the backends in tensor operations, each of which is its oracle (ops/attention.py).
Compiled by numba, since that needs no compiler on the user's machine.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_dist.ops.attention import Scoring
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.fused_kernel import Array, Rules, attend, write
from medusa_dist.ops.kv_rows import KVPool
from medusa_dist.ops.torch_threads import run_shares

_BITS = {torch.float32: (torch.float32, np.float32), torch.bfloat16: (torch.int16, np.uint16)}
_WORTH_SHARING = 20_000  # query-key pairs; below, waking threads costs more than they save
_NO_SINKS = np.zeros(0, np.float32)


def can_fuse(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel reads KV pools of this dtype on this device."""
    return device.type == "cpu" and dtype in _BITS


@dataclass(frozen=True)
class FusedAttention:
    """Attention of one pass: writes the new keys and values, then lets every query read what it may see."""

    pool: KVPool
    batch: ForwardBatch

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """queries [T, Hq, D], keys and values [T, Hk, D] -> [T, Hq, D]. Padding rows come out as zeros."""
        reads = self.batch.reads
        assert reads is not None
        pool = _bits(self.pool.rows[layer])
        write(pool, self.batch.slots.numpy(), _bits(keys), _bits(values))
        out = torch.zeros(queries.shape, dtype=torch.float32)
        rules = Rules(
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
    """A float32 tensor as it is, a bfloat16 one as its bits, which numpy has no type for."""
    as_torch, as_numpy = _BITS[x.dtype]
    bits: npt.NDArray[np.generic] = x.contiguous().view(as_torch).numpy().view(as_numpy)
    return bits
