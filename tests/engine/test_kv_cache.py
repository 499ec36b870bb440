"""The free list and its laws."""

import pytest

from medusa_dist.engine.kv_cache import BlockPool, blocks_for
from medusa_dist.ops.kv_rows import SCRATCH_BLOCK


def test_blocks_for() -> None:
    assert [blocks_for(n) for n in (0, 1, 15, 16, 17, 32, 33)] == [0, 1, 1, 1, 2, 2, 3]


def test_all_blocks_but_scratch_are_handed_out_once() -> None:
    pool = BlockPool(9)
    assert pool.num_usable == pool.num_free == 8
    first, second = pool.take(3), pool.take(5)
    assert sorted(first + second) == list(range(1, 9)) and SCRATCH_BLOCK not in first + second
    assert pool.num_free == 0 and pool.take(0) == []
    pool.check_integrity([first, second])
    with pytest.raises(AssertionError, match="1 blocks asked, 0 free"):
        pool.take(1)
    pool.give_back(second)
    assert pool.num_free == 5 and pool.take(1) == second[-1:]  # last freed, first handed out


def test_giving_back_what_one_does_not_have() -> None:
    pool = BlockPool(5)
    taken = pool.take(2)
    pool.give_back(taken[:1])
    for block in (taken[0], SCRATCH_BLOCK):
        with pytest.raises(AssertionError, match="given back twice"):
            pool.give_back([block])


def test_breaches_are_found() -> None:
    pool = BlockPool(5)
    a, b = pool.take(2), pool.take(1)
    pool.check_integrity([a, b, []])
    for owned, message in (
        ([a, [*b, a[0]]], "two owners"),
        ([a, [*b, pool._free[0]]], "an owned block is free"),
        ([a], "blocks are lost"),
    ):
        with pytest.raises(AssertionError, match=message):
            pool.check_integrity(owned)
