"""Steps made by hand: plans over shuffled block tables, and the slow per-row reading of what they mean."""

import random
from dataclasses import dataclass

import numpy as np

from medusa_dist.engine.runner.plan import Op, Plan
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS


@dataclass(frozen=True)
class Piece:
    """One sequence's part in a step: `start` computed columns, `chain` known tokens, a tree given by its parents."""

    start: int
    chain: int
    parents: tuple[int, ...] = ()
    wanted: bool = True


@dataclass(frozen=True)
class Row:
    """What one row of the pass is."""

    piece: int
    column: int
    position: int
    slot: int
    visible: list[int]  # columns, in the order of their positions
    wanted: bool


def ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def random_parents(rng: random.Random, size: int) -> tuple[int, ...]:
    return tuple(rng.randrange(-1, node) for node in range(size))


def make_step(pieces: list[Piece], seed: int = 0) -> tuple[Plan, Ints, int]:
    """A plan, block tables [slots, blocks] with shuffled blocks in a shuffled order of slots, and how many blocks."""
    rng = random.Random(seed)
    counts = [-(-(p.start + p.chain + len(p.parents)) // BLOCK_TOKENS) for p in pieces]
    num_blocks = 1 + sum(counts) + 3
    blocks = list(range(1, num_blocks))
    rng.shuffle(blocks)
    slots = rng.sample(range(len(pieces) + 2), len(pieces))
    tables = np.array([[rng.choice(blocks) for _ in range(max(counts) + 2)] for _ in range(len(pieces) + 2)])
    for slot, count in zip(slots, counts, strict=True):
        tables[slot, :count] = [blocks.pop() for _ in range(count)]
    plan = Plan(
        Op.STEP,
        generation=0,
        step=0,
        batch_indices=ints(slots),
        num_computed_tokens=ints([p.start for p in pieces]),
        num_new_tokens=ints([p.chain for p in pieces]),
        num_draft_tokens=ints([len(p.parents) for p in pieces]),
        needs_logits=ints([int(p.wanted) for p in pieces]),
        token_ids=ints([rng.randrange(97) for p in pieces for _ in range(p.chain + len(p.parents))]),
        parents=ints([parent for p in pieces for parent in p.parents]),
    )
    return plan, tables.astype(np.int64), num_blocks


def rows_of(pieces: list[Piece], plan: Plan, tables: Ints) -> list[Row]:
    """Row by row, by the definition: a known token sees all before it, a node sees known tokens and its ancestors."""
    rows = []
    for index, p in enumerate(pieces):
        table = tables[plan.batch_indices[index]]

        def add(column: int, visible: list[int], wanted: bool, index: int = index, table: Ints = table) -> None:
            slot = int(table[column // BLOCK_TOKENS]) * BLOCK_TOKENS + column % BLOCK_TOKENS
            rows.append(Row(index, column, len(visible) - 1, slot, visible, wanted))

        known = p.start + p.chain
        for column in range(p.start, known):
            add(column, list(range(column + 1)), p.wanted and column == known - 1)
        for node in range(len(p.parents)):
            path, at = [node], node
            while p.parents[at] != -1:
                at = p.parents[at]
                path.append(at)
            add(known + node, [*range(known), *(known + n for n in reversed(path))], p.wanted)
    return rows
