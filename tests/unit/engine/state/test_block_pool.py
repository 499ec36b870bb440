"""The free list and its laws."""

import numpy as np
import pytest

from medusa_dist.engine.state.block_pool import BlockPool, blocks_for, chain_hash, salt_name
from medusa_dist.ops.attention.kv_cache import SCRATCH_BLOCK


def test_blocks_for_rounds_tokens_up_to_blocks() -> None:
    assert [blocks_for(n) for n in (0, 1, 15, 16, 17, 32, 33)] == [0, 1, 1, 1, 2, 2, 3]


def test_all_blocks_but_scratch_are_handed_out_once() -> None:
    pool = BlockPool(9)
    assert pool.num_usable == pool.num_free == 8
    first, second = pool.allocate(3), pool.allocate(5)
    assert sorted(first + second) == list(range(1, 9)) and SCRATCH_BLOCK not in first + second
    assert pool.num_free == 0 and pool.allocate(0) == []
    pool.check_integrity([first, second])
    with pytest.raises(AssertionError, match="1 blocks requested, 0 free"):
        pool.allocate(1)
    pool.free(second)
    assert pool.num_free == 5 and sorted(pool.allocate(5)) == sorted(second)


def test_growing_owner_gets_neighbouring_blocks() -> None:
    pool = BlockPool(400)
    owned: list[list[int]] = [[] for _ in range(20)]
    for _ in range(9):
        for blocks in owned:
            blocks.extend(pool.allocate(1, behind=blocks))
    assert all(blocks == list(range(blocks[0], blocks[0] + 9)) for blocks in owned)
    pool.check_integrity(owned)


def test_neighbour_that_is_owned_or_cached_is_not_handed_out() -> None:
    pool = BlockPool(12)
    mine = pool.allocate(3)
    named(pool, mine)
    pool.free(mine[1:])  # idle: known prefixes are kept while there are others
    more = pool.allocate(8, behind=mine[:1])
    assert not set(more) & set(mine) and pool.num_free == 2
    pool.check_integrity([mine[:1], more])


def test_freeing_a_block_twice_is_an_assertion_error() -> None:
    pool = BlockPool(5)
    taken = pool.allocate(2)
    pool.free(taken[:1])
    for block in (taken[0], SCRATCH_BLOCK):
        with pytest.raises(AssertionError, match="is freed twice"):
            pool.free([block])


def test_integrity_check_finds_shared_free_and_lost_blocks() -> None:
    pool = BlockPool(5)
    a, b = pool.allocate(2), pool.allocate(1)
    pool.check_integrity([a, b, []])
    for owned, message in (
        ([a, [*b, a[0]]], "two owners"),
        ([a, [*b, next(iter(pool._free))]], "an owned block is free"),
        ([a], "blocks are lost"),
    ):
        with pytest.raises(AssertionError, match=message):
            pool.check_integrity(owned)


def named(pool: BlockPool, blocks: list[int]) -> list[bytes]:
    """Give each block the name of a prefix, one after another."""
    names: list[bytes] = []
    for number, block in enumerate(blocks):
        names.append(chain_hash(names[-1] if names else b"", [number] * 16))
        pool.cache_block(block, names[-1])
    return names


def test_chain_hash_depends_on_the_whole_prefix() -> None:
    a, b = chain_hash(b"", [1] * 16), chain_hash(b"", [2] * 16)
    assert a != b and a == chain_hash(b"", [1] * 16)
    assert chain_hash(a, [3] * 16) != chain_hash(b, [3] * 16)


def test_cached_prefixes_are_shared_and_outlive_their_owner() -> None:
    pool = BlockPool(9)
    mine = pool.allocate(3)
    names = named(pool, mine)
    other = chain_hash(b"", [9] * 16)
    assert (
        pool.find_cached(names) == mine
        and pool.find_cached([names[0], other, names[2]]) == mine[:1]
        and pool.find_cached([other]) == []
    )
    pool.add_owner(mine[:2])
    pool.check_integrity([mine, mine[:2]])
    pool.free(mine)
    assert pool.num_free == 6 and pool.count_idle(mine) == 1  # two are still read by the other
    pool.check_integrity([mine[:2]])
    pool.free(mine[:2])
    assert pool.num_free == 8 and pool.find_cached(names) == mine
    pool.add_owner(pool.find_cached(names))
    assert pool.num_free == 5
    pool.check_integrity([mine])


def test_idle_cached_blocks_are_reused_last_and_from_their_end() -> None:
    pool = BlockPool(6)
    mine = pool.allocate(3)
    names = named(pool, mine)
    pool.free(mine)
    assert not set(pool.allocate(2)) & set(mine)  # two blocks were never used
    assert pool.allocate(1) == mine[2:] and pool.find_cached(names) == mine[:2]
    assert pool.allocate(2) == [mine[1], mine[0]] and pool.find_cached(names) == []


def test_second_block_of_the_same_prefix_is_not_cached() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(1), pool.allocate(1)
    names = named(pool, first)
    assert named(pool, second) == names and pool.find_cached(names) == first
    pool.free(second)
    pool.check_integrity([first])
    assert pool.allocate(3) and pool.find_cached(names) == first


def test_reset_prefix_cache_forgets_idle_blocks_only() -> None:
    pool = BlockPool(5)
    kept, left = pool.allocate(1), pool.allocate(2)
    names = named(pool, [*kept, *left])
    pool.free(left)
    pool.reset_prefix_cache()
    assert pool.find_cached(names) == kept and pool.num_free == 3
    pool.check_integrity([kept])


def test_salt_names_are_distinct_from_each_other_and_from_hashes() -> None:
    """No salt is the name of a block, not even one that was made to be: salts are marked."""
    assert salt_name(None) == b"" and salt_name("a") == salt_name("a")
    names = {salt_name(None), salt_name("a"), salt_name("b"), salt_name("ab")}
    assert len(names) == 4
    words = [7] * 16
    as_text = np.array(words, dtype=np.int64).tobytes().decode()
    assert salt_name(as_text) != chain_hash(b"", words)
