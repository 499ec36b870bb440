import time

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from medusa_dist.errors import ConfigError
from medusa_dist.ops.linear import RowLinear
from medusa_dist.ops.tp_group import TPGroup


def test_collectives_of_one_rank_are_the_identity() -> None:
    one, x = TPGroup(), torch.randn(3, 4)
    assert one.all_reduce(x) is x
    assert one.gather_to_rank0(x) == [x]
    weight, bias = torch.randn(5, 4), torch.randn(5)
    assert torch.allclose(RowLinear(weight, bias, False, one)(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_shard_ranges_of_all_ranks_cover_everything_once(world: int) -> None:
    ranks = [TPGroup(rank, world) for rank in range(world)]
    chunks = [rank.shard_range(97) for rank in ranks]
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(97))
    assert max(b - a for a, b in chunks) - min(b - a for a, b in chunks) <= 1
    shards = [rank.vocab_shard(97) for rank in ranks]
    assert [i for start, stop, _ in shards for i in range(start, stop)] == list(range(97))
    assert {rows for *_, rows in shards} == {-(-97 // world)}
    assert all(start == min(rank * rows, 97) for rank, (start, _, rows) in enumerate(shards))


def test_small_vocabulary_gives_short_and_empty_shards() -> None:
    assert [TPGroup(rank, 4).vocab_shard(5) for rank in range(4)] == [(0, 2, 2), (2, 4, 2), (4, 5, 2), (5, 5, 2)]


def test_rank_outside_the_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank 2"):
        TPGroup(2, 2)


def test_time_in_collectives_is_counted_by_the_rank_and_is_no_part_of_its_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: time.sleep(0.02))
    monkeypatch.setattr(dist, "gather", lambda *_, **__: time.sleep(0.03))
    rank = TPGroup(1, 2)
    rank.all_reduce(torch.zeros(2))
    assert 0.02 <= rank.clock.seconds < 0.5
    before = rank.clock.seconds
    rank.gather_to_rank0(torch.zeros(2))
    assert 0.03 <= rank.clock.seconds - before < 0.5
    assert rank == TPGroup(1, 2) and TPGroup(1, 2).clock.seconds == 0.0
    alone = TPGroup()
    alone.all_reduce(torch.zeros(2))
    assert alone.clock.seconds == 0.0
