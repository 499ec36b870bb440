"""BlockPool: allocation of KV blocks, and the prefix cache.

Owns the free list, the prefix cache and their invariants. Not here: the memory (ops/attention/kv_cache.py), which
sequence gets blocks when (engine/scheduler/scheduler.py).
Blocks 1..num_blocks-1 are allocated; block 0 is scratch and is never allocated. Each block is in exactly one state:
  free    no owner, and its contents are not cached
  idle    no owner, but it holds a cached prefix; evicted least recently used first when free blocks run out
  owned   by one sequence that may write to it, or by several that only read it
Prefix cache: a full block of verified tokens is identified by a hash over its tokens and the hash of the block before
it, so equal hashes mean equal prefixes (after vLLM's automatic prefix caching).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, SCRATCH_BLOCK


def blocks_for(num_kv_tokens: int) -> int:
    """Number of blocks that hold this many tokens."""
    return -(-num_kv_tokens // BLOCK_TOKENS)


def salt_name(salt: str | None) -> bytes:
    """Hash that a chain of block hashes starts from: b"" for prompts that all requests may share, else a hash of the
    salt.

    The hash is personalised as a salt, so that no text can produce the hash of another request's block.
    """
    return b"" if salt is None else hashlib.blake2b(salt.encode(), digest_size=16, person=b"salt").digest()


def chain_hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block: of its tokens, after the prefix (or salt) with the hash `before` (b"" at the start)."""
    return hashlib.blake2b(before + np.array(tokens, dtype=np.int64).tobytes(), digest_size=16).digest()


_GOLDEN = 0.6180339887  # multiples of it, modulo 1, are spread as evenly as possible


class BlockPool:
    """Allocates blocks, contiguous for one owner where possible: attention gathers neighbouring blocks faster (on a CPU
    by a third). So a new run of blocks starts far from the other runs, where it has room to grow."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = dict.fromkeys(b for b in range(num_blocks) if b != SCRATCH_BLOCK)  # most recently freed last
        self._num_runs = 0
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._owners = [0] * num_blocks
        self._name: dict[int, bytes] = {}  # block -> hash of the prefix that ends with it
        self._known: dict[bytes, int] = {}  # the inverse

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_usable(self) -> int:
        """All blocks except the scratch block."""
        return self.num_blocks - 1

    def allocate(self, count: int, behind: Sequence[int] = ()) -> list[int]:
        """Allocate `count` blocks to the owner of the blocks in `behind`; the caller has checked num_free."""
        assert count <= self.num_free, f"{count} blocks requested, {self.num_free} free"
        taken: list[int] = []
        last = behind[-1] if behind else None
        for _ in range(count):
            last = self._next(last)
            self._owners[last] = 1
            taken.append(last)
        return taken

    def _next(self, last: int | None) -> int:
        """The free block right after `last`, else one far from other runs, else the last freed, else an idle one."""
        if last is None or last + 1 not in self._free:
            self._num_runs += 1
            last = int(self._num_runs * _GOLDEN % 1.0 * self.num_blocks) - 1
        if last + 1 in self._free:
            del self._free[last + 1]
            return last + 1
        return self._free.popitem()[0] if self._free else self._forget_oldest()

    def free(self, blocks: Sequence[int]) -> None:
        """Remove one owner from each block. Cached blocks become idle; the end of a chain is evicted first."""
        for block in reversed(blocks):
            assert self._owners[block] > 0, f"block {block} is freed twice"
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if block in self._name:
                    self._idle[block] = None
                else:
                    self._free[block] = None

    def find_cached(self, names: Sequence[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of a chain of block hashes."""
        blocks = []
        for name in names:
            if name not in self._known:
                break
            blocks.append(self._known[name])
        return blocks

    def count_idle(self, blocks: Sequence[int]) -> int:
        """How many of these blocks count as free now and would not after `add_owner`."""
        return sum(self._owners[block] == 0 for block in blocks)

    def add_owner(self, blocks: Sequence[int]) -> None:
        """Add one owner to each of these cached blocks."""
        for block in blocks:
            self._idle.pop(block, None)
            self._owners[block] += 1

    def cache_block(self, block: int, name: bytes) -> None:
        """Make this owned, full, verified block findable by the hash of the prefix that ends with it.

        The first block with a hash keeps it; a second one stays uncached.
        """
        assert self._owners[block] > 0, f"block {block} has no owner"
        if name not in self._known and block not in self._name:
            self._known[name] = block
            self._name[block] = name

    def reset_prefix_cache(self) -> None:
        """Make all idle blocks free: for measurements that must not hit blocks that earlier requests cached."""
        while self._idle:
            self._free[self._forget_oldest()] = None

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._known[self._name.pop(block)]
        return block

    def check_integrity(self, owned: list[list[int]], shared: frozenset[int] = frozenset()) -> None:
        """Every block is free, idle or owned, and its owner count is right. Only cached blocks, and those that beams
        share, have several owners."""
        counts = [0] * self.num_blocks
        for block in (block for blocks in owned for block in blocks):
            counts[block] += 1
        several = {block for block, count in enumerate(counts) if count > 1}
        assert several <= self._name.keys() | shared, "a block has two owners"
        assert not any(counts[block] for block in (*self._free, *self._idle)), "an owned block is free"
        assert counts == self._owners, "blocks are lost"
        held = sum(count > 0 for count in counts)
        assert held + len(self._free) + len(self._idle) == self.num_usable, "blocks are lost"
        assert {name: block for block, name in self._name.items()} == self._known, "block hashes and blocks disagree"
        assert self._idle.keys() <= self._name.keys(), "an idle block has no hash"
