"""Sizes the KV cache: what is left of a rank's memory after weights, heads and workspace.

Owns the arithmetic. Not here: the layout of the cache (ops/attention/kv_cache.py), the measured workspace
(workspace.py).
Pure: bootstrap.py calls it with measured memory, `medusa-dist check` with given memory and an estimate of the
workspace.
"""

from dataclasses import dataclass

from medusa_dist.config import Config
from medusa_dist.engine.state.block_pool import blocks_for

CPU_POOL_BYTES = 1 << 30  # largest default KV cache on a CPU
GPU_WORKSPACE = 0.05  # share of GPU memory kept for activations where nothing was measured, on top of memory_fraction
MIN_BLOCKS = 2  # fewer cannot hold a growing sequence


@dataclass(frozen=True)
class DeviceMemory:
    """A GPU's memory in bytes. free: what is left after weights, heads and the CUDA context.

    workspace: what a step needs in addition, measured (workspace.py); None: not measured, an estimate is kept free.
    """

    free: int
    total: int
    workspace: int | None = None

    def spare(self, memory_fraction: float) -> int:
        """Bytes for the KV cache and attention's gathered copy of one layer; negative if the weights are too large."""
        workspace = int(self.total * GPU_WORKSPACE) if self.workspace is None else self.workspace
        return self.free - int(self.total * (1 - memory_fraction)) - workspace


def kv_blocks(
    config: Config, max_model_len: int, num_layers: int, block_bytes: int, memory: DeviceMemory | None
) -> int:
    """KV blocks that this rank can hold, without the scratch block; the group uses the minimum over all ranks.

    max_model_len: resolved, in tokens. block_bytes: of one block in all layers. memory: None on a CPU.
    """
    if config.kv_cache_tokens is not None:
        return blocks_for(config.kv_cache_tokens)
    longest = blocks_for(max_model_len)
    wanted = config.max_running * longest
    if memory is None:
        return min(wanted, max(CPU_POOL_BYTES // block_bytes, longest))
    return min(wanted, int(memory.spare(config.memory_fraction) / gathered_block_bytes(block_bytes, num_layers)))


def gathered_block_bytes(block_bytes: int, num_layers: int) -> float:
    """Bytes per block while it is read: attention gathers the keys and values of a layer before it reads them."""
    return block_bytes * (1 + 2 / num_layers)
