"""How a rank's memory is shared out: weights and heads first, a reserve for workspace, the rest is KV cache.

Owns the arithmetic. Pure: the start of a rank (engine/startup/bootstrap.py) calls it with measured memory, `medusa-dist
check` with stated memory and an estimate of the workspace. Not here: the pool's layout (ops/attention/kv_cache.py).
"""

from dataclasses import dataclass

from medusa_dist.config import Config
from medusa_dist.engine.state.block_pool import blocks_for

CPU_POOL_BYTES = 1 << 30  # default size of the KV pool on a CPU, at most
GPU_WORKSPACE = 0.05  # share of a GPU's memory for activations, where nothing was measured, beside memory_fraction
MIN_BLOCKS = 2  # fewer cannot hold a sequence that grows


@dataclass(frozen=True)
class DeviceMemory:
    """A GPU's memory in bytes. free: what is left beside weights, heads and the CUDA context.

    workspace: what a step needs besides, measured (profile_memory.py); None: not measured, an estimate is kept free.
    """

    free: int
    total: int
    workspace: int | None = None

    def spare(self, memory_fraction: float) -> int:
        """Bytes for the KV cache and attention's copy of a layer of it; negative if the weights alone take more."""
        workspace = int(self.total * GPU_WORKSPACE) if self.workspace is None else self.workspace
        return self.free - int(self.total * (1 - memory_fraction)) - workspace


def kv_blocks(
    config: Config, max_model_len: int, num_layers: int, block_bytes: int, memory: DeviceMemory | None
) -> int:
    """KV blocks that this rank can hold, the scratch block not counted; the group takes the least of all ranks.

    max_model_len: resolved, tokens. block_bytes: of one block in all layers. memory: None on a CPU.
    """
    if config.kv_cache_tokens is not None:
        return blocks_for(config.kv_cache_tokens)
    longest = blocks_for(max_model_len)
    wanted = config.max_running * longest
    if memory is None:
        return min(wanted, max(CPU_POOL_BYTES // block_bytes, longest))
    return min(wanted, int(memory.spare(config.memory_fraction) / gathered_block_bytes(block_bytes, num_layers)))


def gathered_block_bytes(block_bytes: int, num_layers: int) -> float:
    """Bytes that a block costs while it is read: attention gathers a layer's keys and values before it reads them."""
    return block_bytes * (1 + 2 / num_layers)
