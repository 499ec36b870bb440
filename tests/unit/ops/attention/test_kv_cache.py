"""The KV pool's rows: where writes land, and moves whose sources and targets overlap."""

import random

import pytest
import torch

from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache, block_bytes

CPU = torch.device("cpu")


def pool(num_blocks: int = 3, numbered: bool = True, columns: bool = False) -> KVCache:
    """2 layers, 3 heads of size 5; numbered: every value tells where it stands."""
    made = KVCache.allocate(2, 3, 5, num_blocks, torch.float32, CPU, columns)
    if numbered:
        made.rows.copy_(torch.arange(made.rows.numel()).view(made.rows.shape))
    return made


def test_pool_is_allocated_zeroed_with_block_bytes_per_block() -> None:
    made = pool(7, numbered=False)
    assert made.num_blocks == 7 and made.rows.shape == (2, 2, 3, 7 * BLOCK_TOKENS, 5)
    assert not made.rows.any()
    assert block_bytes(2, 3, 5, torch.float32) * 7 == made.rows.numel() * 4
    assert block_bytes(2, 3, 5, torch.bfloat16) * 2 == block_bytes(2, 3, 5, torch.float32)


def test_write_touches_its_slots_in_its_layer_only() -> None:
    made, before = pool(), pool().rows
    keys, values = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    made.write(1, torch.tensor([40, 17]), keys, values)
    for i, slot in enumerate((40, 17)):
        assert torch.equal(made.rows[1, 0, :, slot], keys[i]) and torch.equal(made.rows[1, 1, :, slot], values[i])
    rest = [slot for slot in range(48) if slot not in (40, 17)]
    assert torch.equal(made.rows[1][:, :, rest], before[1][:, :, rest])
    assert torch.equal(made.rows[0], before[0])


def transposed(rows: torch.Tensor) -> torch.Tensor:
    """The tensor of a cache with keys in columns, for that of one with keys in rows."""
    moved = rows.clone()
    blocks = rows[:, 0].unflatten(2, (-1, BLOCK_TOKENS)).transpose(3, 4)  # [layers, heads, blocks, 5, BLOCK_TOKENS]
    moved[:, 0] = blocks.reshape(rows[:, 0].shape)
    return moved


def test_keys_in_columns_stand_transposed_in_their_blocks_and_all_else_as_in_rows() -> None:
    rng = random.Random(5)
    for _ in range(10):
        rows, columns = pool(numbered=False), pool(numbered=False, columns=True)
        slots = torch.tensor(rng.sample(range(48), 7))
        keys, values = torch.randn(2, 7, 3, 5)
        sources, targets = (torch.tensor(rng.sample(range(48), 9)) for _ in range(2))
        for made in (rows, columns):
            made.write(1, slots, keys, values)
            found = made.read(1, slots)
            assert torch.equal(found[0], keys) and torch.equal(found[1], values)
            made.copy_rows(sources, targets)
        assert torch.equal(columns.rows, transposed(rows.rows))
        assert columns.host_layers[1][0].shape == (3, 3, 5, BLOCK_TOKENS)
        assert columns.host_layers[1][0][2, 1, 4, 6] == rows.host_layers[1][0][2, BLOCK_TOKENS + 6, 4]


@pytest.mark.parametrize(
    ("sources", "targets"),
    [
        ([18, 19, 20], [17, 18, 19]),  # each target is the next move's source
        ([17, 18, 19], [18, 19, 20]),  # and the other way round
        ([17, 40], [40, 17]),  # a swap
        ([17, 17], [30, 31]),  # one source, two targets
        ([20], [20]),
    ],
)
def test_copy_rows_reads_all_sources_before_it_writes(sources: list[int], targets: list[int]) -> None:
    made, before = pool(), pool().rows
    made.copy_rows(torch.tensor(sources), torch.tensor(targets))
    expected = before.clone()
    for source, target in zip(sources, targets, strict=True):
        expected[:, :, :, target] = before[:, :, :, source]
    assert torch.equal(made.rows, expected)


def test_copy_rows_equals_indexing_for_random_moves() -> None:
    rng = random.Random(3)
    for _ in range(20):
        sources = [rng.randrange(48) for _ in range(12)]
        targets = rng.sample(range(48), 12)
        made, before = pool(), pool().rows
        made.copy_rows(torch.tensor(sources), torch.tensor(targets))
        expected = before.clone()
        expected[:, :, :, targets] = before[:, :, :, sources]
        assert torch.equal(made.rows, expected)
