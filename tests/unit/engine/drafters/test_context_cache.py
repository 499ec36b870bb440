"""Keys and values of a draft layer: which row follows which, which slot holds what, and what is kept between steps."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from medusa_dist.engine.drafters.context_cache import ContextCache, context_slots, previous_rows
from medusa_dist.engine.runner.batch_builder import prepare
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.medusa.eagle3.layer import Eagle3
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.attention.registry import BACKENDS
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.plan_helpers import Piece, ints, make_step, random_parents, rows_of
from tests.support.tiny_eagle3 import HIDDEN, VOCAB, in_memory

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BLOCKS = 8
TABLES = np.array([[3, 5, 6], [1, 2, 4]], dtype=np.int64)  # of batch indices 0 and 1


def test_previous_rows_are_those_of_the_token_before_or_of_the_parent() -> None:
    rng = random.Random(3)
    pieces = [Piece(5, 1, random_parents(rng, 6)), Piece(0, 9), Piece(17, 4, random_parents(rng, 5)), Piece(3, 1)]
    plan, tables, _ = make_step(pieces)
    rows = rows_of(pieces, plan, tables)
    before = previous_rows(plan, len(rows) + 2)
    assert before.shape == (len(rows) + 2,)
    for index, row in enumerate(rows):
        if len(row.visible) > 1 and row.visible[-2] >= pieces[row.piece].start:
            previous = rows[before[index]]
            assert (previous.piece, previous.column) == (row.piece, row.visible[-2])


def test_context_slots_read_accepted_rows_where_they_still_are() -> None:
    request = Request(request_id="x", prompt_ids=tuple(range(20)), params=SamplingParams(), seed=0)
    sequence = SingleSequence(request, ()).root
    sequence.block_table, sequence.pending_copies = [7, 4], [(19, 17), (18, 16)]
    natural = [7 * BLOCK_TOKENS + i for i in range(16)]
    assert context_slots(sequence, 18).tolist() == [*natural, 4 * BLOCK_TOKENS + 2, 4 * BLOCK_TOKENS + 3]


class Steps:
    """Passes over texts whose aux states are known, through one cache."""

    def __init__(self) -> None:
        self.file = in_memory("official")
        self.heads = Eagle3(self.file, None, torch.float32, CPU)
        self.embedding = self.file.tensors["embed_tokens.weight"]
        self.cache = ContextCache(self.heads, self.embedding, BLOCKS)
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(VOCAB, (2, 40), generator=generator)
        self.aux = torch.randn(2, 40, 3 * HIDDEN, generator=generator)

    def run(self, plan: Plan, rows: list[tuple[int, int]]) -> torch.Tensor:
        """rows: (text, position) of each row of the plan."""
        padded = [*rows, *[(0, 0)] * max(0, 4 - len(rows))]
        tokens = ints([int(self.tokens[text, place]) for text, place in rows])
        plan = replace(plan, token_ids=tokens)
        batch = prepare(plan, TABLES, CPU, BACKENDS["exact"](6, 2, torch.float32))
        if plan.copy_sources.size:
            self.cache.copy(plan)
        read = self.cache.read(batch, torch.stack([self.aux[text, place] for text, place in padded]))
        self.cache.keep(plan, TABLES, batch, read)
        return read

    def wanted(self, text: int, place: int, known: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of the pair at a place; known: whether the state before it is."""
        state = self.heads.fuse(self.aux[text, place - 1][None]) * known
        pair, _ = self.heads.read(self.embedding[self.tokens[text, place]][None], state)
        keys, values = self.heads.keys_values(pair, torch.tensor([place]))
        return keys[0], values[0]

    def check(self, slot: int, wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
        torch.testing.assert_close(self.cache.cache.rows[0, 0, :, slot], wanted[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(self.cache.cache.rows[0, 1, :, slot], wanted[1], atol=1e-5, rtol=1e-5)


def step(
    computed: list[int],
    new: list[int],
    drafts: list[int] | None = None,
    parents: list[int] | None = None,
    admitted: list[int] | None = None,
    batch: list[int] | None = None,
    copies: list[tuple[int, int]] | None = None,
) -> Plan:
    plan, _, _ = make_step([Piece(0, 1)])
    drafts = drafts or [0] * len(new)
    copied: Ints = np.array(copies or [], dtype=np.int64).reshape(-1, 2)
    return replace(
        plan,
        admitted_indices=ints(admitted or []),
        batch_indices=ints(batch or list(range(len(new)))),
        num_computed_tokens=ints(computed),
        num_new_tokens=ints(new),
        num_draft_tokens=ints(drafts),
        needs_logits=ints([1] * len(new)),
        parents=ints(parents or []),
        copy_sources=copied[:, 0].copy(),
        copy_targets=copied[:, 1].copy(),
    )


def slot(text: int, place: int) -> int:
    return int(TABLES[text, place // BLOCK_TOKENS]) * BLOCK_TOKENS + place % BLOCK_TOKENS


def test_chunks_of_a_prompt_are_joined_by_the_state_between_them() -> None:
    steps = Steps()
    steps.run(step([0, 0], [5, 18], admitted=[0, 1]), [*((0, i) for i in range(5)), *((1, i) for i in range(18))])
    # Text 1 waits for a step, in which text 0 goes on: its state stays.
    steps.run(step([5], [3], batch=[0]), [(0, i) for i in range(5, 8)])
    fused = steps.run(step([8, 18], [1, 2]), [(0, 8), (1, 18), (1, 19)])
    assert fused.shape == (4, HIDDEN)
    torch.testing.assert_close(fused[2], steps.heads.fuse(steps.aux[1, 19][None])[0])
    for text, length in ((0, 9), (1, 20)):
        for place in range(1, length):
            steps.check(slot(text, place), steps.wanted(text, place))


def test_the_state_before_a_prefix_hit_is_taken_as_zero_even_if_another_sequence_left_one() -> None:
    steps = Steps()
    steps.run(step([0], [16], admitted=[0]), [(0, i) for i in range(16)])
    steps.run(
        step([16], [2], admitted=[0]), [(0, 16), (0, 17)]
    )  # another sequence, with the first block from the cache
    steps.check(slot(0, 16), steps.wanted(0, 16, known=False))
    steps.check(slot(0, 17), steps.wanted(0, 17))


def test_a_draft_row_reads_its_parent_and_an_accepted_one_is_copied_with_its_state() -> None:
    """Two guesses after the root at place 3; the second, at KV index 5, is right and moves to 4."""
    steps = Steps()
    steps.tokens[1, 4] = (steps.tokens[0, 4] + 1) % VOCAB  # the wrong guess
    steps.run(step([0], [3], admitted=[0]), [(0, 0), (0, 1), (0, 2)])
    steps.run(step([3], [1], [3], [-1, -1, 1]), [(0, 3), (1, 4), (0, 4), (0, 5)])
    moves = [(slot(0, 5), slot(0, 4)), (slot(0, 6), slot(0, 5))]
    steps.run(step([6], [1], copies=moves), [(0, 6)])
    for place in range(1, 7):
        steps.check(slot(0, place), steps.wanted(0, place))
