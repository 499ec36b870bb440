"""Which KV block belongs to whom.

Owns the free list and its laws. Not here: the memory (ops/kv_rows.py), who gets blocks when (engine/scheduler.py).
Blocks 1..num_blocks-1 are handed out; block 0 is scratch and never leaves. A block has one owner.
"""

from collections import deque

from medusa_dist.ops.kv_rows import BLOCK_TOKENS, SCRATCH_BLOCK


def blocks_for(num_columns: int) -> int:
    """Blocks that hold num_columns tokens."""
    return -(-num_columns // BLOCK_TOKENS)


class BlockPool:
    """The free list. Last freed, first handed out: the likeliest to be in a cache."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free: deque[int] = deque(b for b in range(num_blocks) if b != SCRATCH_BLOCK)
        self._is_free = [b != SCRATCH_BLOCK for b in range(num_blocks)]

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """Blocks there are, the scratch block not counted."""
        return self.num_blocks - 1

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks; the caller has looked at num_free."""
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._is_free[block] = False
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Take blocks back."""
        for block in blocks:
            assert block != SCRATCH_BLOCK and not self._is_free[block], f"block {block} is given back twice"
            self._is_free[block] = True
            self._free.append(block)

    def check_integrity(self, owned: list[list[int]]) -> None:
        """Every block is either free or owned, by exactly one of `owned`."""
        all_owned = [block for blocks in owned for block in blocks]
        assert len(set(all_owned)) == len(all_owned), "a block has two owners"
        assert set(all_owned).isdisjoint(self._free), "an owned block is free"
        assert len(all_owned) + len(self._free) == self.num_usable, "blocks are lost"
