"""KVCache: memory of the paged KV cache, and the primitive that copies rows in it.

Owns the tensor layout. Not here: block ownership (engine/state/block_pool.py), reading for attention (padded.py,
paged_cpu.py).
Layout: one tensor [layers, 2, kv heads, slots, head_dim], keys at index 0; slot = block * BLOCK_TOKENS + offset. Heads
come before slots so that a gathered block is ready for a batched matrix product. A cache with keys in columns has the
keys of each block transposed, [head_dim, BLOCK_TOKENS] in the same place: a CPU multiplies one element of a query by
those of 16 keys at once. Block 0 is scratch: padding rows write there, and it is never read.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.cpu.arrays import bits
from medusa_dist.ops.cpu.huge_pages import zeros_on_demand

BLOCK_TOKENS = 16
SCRATCH_BLOCK = 0


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers on one rank."""

    rows: Tensor  # [layers, 2, kv heads, slots, head_dim]
    keys_in_columns: bool = False

    @classmethod
    def allocate(
        cls,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        keys_in_columns: bool = False,
    ) -> "KVCache":
        """A zeroed cache of num_blocks blocks, including the scratch block.

        keys_in_columns: as the attention backend that reads it wants. Zeroed, since masked KV indices still enter
        products with weight 0, and 0 x NaN from stale memory is NaN.
        """
        shape = (num_layers, 2, num_kv_heads, num_blocks * BLOCK_TOKENS, head_dim)
        if device.type == "cpu":
            return cls(zeros_on_demand(shape, dtype), keys_in_columns)
        return cls(torch.zeros(shape, dtype=dtype, device=device), keys_in_columns)

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache, including the scratch block."""
        return self.rows.shape[3] // BLOCK_TOKENS

    @cached_property
    def host_layers(self) -> list[tuple[Array, Array]]:
        """Each layer's keys and values as arrays, of a cache on a CPU: [kv heads, slots, head_dim]; keys in columns
        [kv heads, blocks, head_dim, BLOCK_TOKENS]."""
        return [(bits(keys), bits(values)) for keys, values in zip(self._keys, self.rows[:, 1], strict=True)]

    @property
    def _keys(self) -> Tensor:
        """[layers, kv heads, slots, head_dim]; in columns [layers, kv heads, blocks, head_dim, BLOCK_TOKENS]."""
        keys = self.rows[:, 0]
        return keys.view(*keys.shape[:2], -1, keys.shape[3], BLOCK_TOKENS) if self.keys_in_columns else keys

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys and values [T, kv heads, head_dim] of one layer to slots [T] int64."""
        if self.keys_in_columns:
            self._keys[layer][:, slots // BLOCK_TOKENS, :, slots % BLOCK_TOKENS] = keys
        else:
            self.rows[layer, 0].index_copy_(1, slots, keys.transpose(0, 1))
        self.rows[layer, 1].index_copy_(1, slots, values.transpose(0, 1))

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values [T, kv heads, head_dim] of one layer at slots [T] int64."""
        if self.keys_in_columns:
            keys = self._keys[layer][:, slots // BLOCK_TOKENS, :, slots % BLOCK_TOKENS]
        else:
            keys = self.rows[layer, 0].index_select(1, slots).transpose(0, 1)
        return keys, self.rows[layer, 1].index_select(1, slots).transpose(0, 1)

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows in all layers: gather all sources, then scatter to all targets, so overlaps are safe."""
        if not self.keys_in_columns:
            self.rows.index_copy_(3, targets, self.rows.index_select(3, sources))
            return
        keys, values = self._keys, self.rows[:, 1]
        picked = keys[:, :, sources // BLOCK_TOKENS, :, sources % BLOCK_TOKENS]
        keys[:, :, targets // BLOCK_TOKENS, :, targets % BLOCK_TOKENS] = picked
        values.index_copy_(2, targets, values.index_select(2, sources))


def block_bytes(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block of BLOCK_TOKENS tokens on one rank."""
    return 2 * num_layers * num_kv_heads * head_dim * BLOCK_TOKENS * dtype.itemsize
