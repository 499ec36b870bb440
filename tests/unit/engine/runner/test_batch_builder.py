"""prepare against the row-by-row reading of a plan."""

import random

import numpy as np
import pytest
import torch

from medusa_dist.engine.runner.batch_builder import MIN_ROWS, logits_rows_of, prepare
from medusa_dist.ops.attention.backend import Ancestry
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, SCRATCH_BLOCK
from medusa_dist.ops.attention.paged_cpu import ROWS_OF_ITEM
from medusa_dist.ops.attention.registry import BACKENDS
from tests.support.plan_helpers import Piece, ints, make_step, random_parents, rows_of

MIN_QUERIES = 3  # of heads of width 96 in pairs
CPU = torch.device("cpu")
PADDED, PAGED = BACKENDS["exact"](96, 2, torch.float32), BACKENDS["paged_cpu"](96, 2, torch.float32)


def check(pieces: list[Piece], seed: int = 0) -> None:
    plan, tables, _ = make_step(pieces, seed)
    rows = rows_of(pieces, plan, tables)
    batch = prepare(plan, tables, CPU, PADDED)
    padding = max(0, MIN_ROWS - len(rows))
    assert batch.input_ids.tolist() == plan.token_ids.tolist() + [0] * padding
    assert batch.positions.tolist() == [row.position for row in rows] + [0] * padding
    assert batch.slot_mapping.tolist()[: len(rows)] == [row.slot for row in rows]
    assert all(slot // BLOCK_TOKENS == SCRATCH_BLOCK for slot in batch.slot_mapping.tolist()[len(rows) :])
    needed = [i for i, row in enumerate(rows) if row.wanted]
    assert batch.logits_rows.tolist() == needed == logits_rows_of(plan).tolist()
    seen = []
    for group in batch.attention.groups:
        size, width = group.query_rows.shape
        assert width >= MIN_QUERIES and group.visible.shape[:2] == (size, width)
        blocks = group.block_tables.view(size, -1)
        assert group.visible.shape[2] == blocks.shape[1] * BLOCK_TOKENS == group.key_positions.shape[1]
        for b in range(size):
            for q in range(width):
                index = int(group.query_rows[b, q])
                columns = group.visible[b, q].nonzero().flatten().tolist()
                if index >= len(rows):
                    assert columns == [0]  # padding reads something, and writes behind the pass or to a padding row
                    assert index == len(rows) + padding or len(pieces) == 1
                    continue
                row = rows[index]
                assert sorted(columns) == sorted(row.visible)
                assert int(group.query_positions[b, q]) == row.position
                assert [int(group.key_positions[b, c]) for c in row.visible] == list(range(row.position + 1))
                table = tables[plan.batch_indices[row.piece]]
                assert [int(blocks[b, c // BLOCK_TOKENS]) for c in row.visible] == [
                    int(table[c // BLOCK_TOKENS]) for c in row.visible
                ]
                seen.append(index)
    assert sorted(seen) == list(range(len(rows)))
    queries = [int(row) for group in batch.attention.groups for row in group.query_rows.flatten()]
    assert batch.attention.in_order == (
        len(batch.attention.groups) == 1 and queries == list(range(len(rows) + padding))
    )


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(0, 1)],
        [Piece(0, 40)],
        [Piece(15, 1), Piece(16, 1), Piece(17, 1)],
        [Piece(30, 1, (-1, -1, 0, 0, 1)), Piece(2, 9, wanted=False)],
        [Piece(14, 3, (-1, 0, 1, -1))],
        [Piece(0, 5, (-1, 0), wanted=False), Piece(300, 1, (-1,)), Piece(3, 1)],
    ],
    ids=["one", "prompt", "block edges", "tree and chunk", "chain and tree", "long and short"],
)
def test_prepared_batch_equals_the_row_by_row_reading_of_a_plan(pieces: list[Piece]) -> None:
    check(pieces)


@pytest.mark.parametrize("seed", range(25))
def test_prepared_batch_equals_the_row_by_row_reading_of_random_plans(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [
        Piece(
            start=rng.choice([0, 1, 15, 16, 31, 60, 255, 256, 500]),
            chain=rng.choice([1, 1, 1, 2, 17, 33]),
            parents=random_parents(rng, rng.choice([0, 0, 1, 3, 7, 20])),
            wanted=rng.random() < 0.8,
        )
        for _ in range(rng.randrange(1, 9))
    ]
    check(pieces, seed)


def test_ancestry_gives_depths_and_the_ancestor_matrix() -> None:
    tree = Ancestry(ints([-1, 0, 0, 2, -1]))
    assert tree.depths.tolist() == [1, 2, 2, 3, 1]
    assert tree.matrix.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_padded_groups_hold_sequences_of_similar_length() -> None:
    pieces = [Piece(20, 1), Piece(25, 1), Piece(1000, 1), Piece(0, 64), Piece(25, 1, (-1,) * 30)]
    plan, tables, _ = make_step(pieces)
    shapes = sorted(tuple(group.visible.shape) for group in prepare(plan, tables, CPU, PADDED).attention.groups)
    assert shapes == [(1, 3, 1008), (1, 31, 64), (1, 64, 64), (2, 3, 32)]


def test_same_plan_gives_the_same_tensors() -> None:
    plan, tables, _ = make_step([Piece(9, 1, (-1, 0, 0)), Piece(70, 2)])
    first, second = (prepare(plan, np.array(tables), CPU, PADDED) for _ in range(2))
    assert torch.equal(first.slot_mapping, second.slot_mapping)
    assert all(
        torch.equal(a.visible, b.visible) for a, b in zip(first.attention.groups, second.attention.groups, strict=True)
    )


def test_work_items_cover_every_row_once() -> None:
    pieces = [Piece(0, 40), Piece(5, 1, (-1, 0)), Piece(700, 17), Piece(3, 16), Piece(90, 1)]
    plan, tables, _ = make_step(pieces, 3)
    batch = prepare(plan, tables, CPU, PAGED)
    made = batch.attention
    items = made.work_items
    covered = sorted((int(s), row) for s, begin, end in items for row in range(begin, end))
    assert covered == [(s, row) for s, piece in enumerate(pieces) for row in range(piece.chain + len(piece.parents))]
    assert all(0 < end - begin <= ROWS_OF_ITEM for _, begin, end in items)
    assert made.cost == sum(int((end - begin) * (pieces[s].start + end)) for s, begin, end in items)
    assert made.ancestors.tolist() == [[True, False], [True, True]] and made.depths.tolist() == [
        1,
        2,
    ]


def test_work_of_two_threads_costs_about_the_same() -> None:
    """A prompt's later rows read more keys; each of two threads gets some of both."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        reads = prepare(*make_step([Piece(0, 512)])[:2], CPU, PAGED).attention
    finally:
        torch.set_num_threads(before)
    work = [int((end - begin) * end) for _, begin, end in reads.work_items]
    half = sum(work[: len(work) // 2])
    assert 0.48 < half / sum(work) < 0.54
