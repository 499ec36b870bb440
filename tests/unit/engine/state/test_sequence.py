"""A sequence's columns, blocks and invariants."""

import numpy as np
import pytest

from medusa_dist.engine.state.sequence import NOT_IN_BATCH, Sequence
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.tree import EMPTY, Tree
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams


def sequence(prompt: int = 20, output: int = 0) -> Sequence:
    request = Request(request_id="x", prompt_ids=tuple(range(prompt)), params=SamplingParams(), seed=0)
    return SingleSequence(request, tuple(range(output))).root


def test_new_sequence_has_all_tokens_uncomputed_and_no_batch_index() -> None:
    made = sequence(20, 3)
    assert made.tokens == [*range(20), 0, 1, 2]
    assert (made.num_prompt_tokens, made.num_output_tokens, made.num_uncomputed_tokens, made.batch_index) == (
        20,
        3,
        23,
        NOT_IN_BATCH,
    )
    made.check_integrity()


def test_columns_map_to_slots_and_blocks_to_allocate() -> None:
    made = sequence()
    made.block_table = [7, 3]
    assert [made.slot_at(column) for column in (0, 15, 16, 31)] == [112, 127, 48, 63]
    assert [made.num_blocks_to_allocate(n) for n in (1, 32, 33, 64, 65)] == [0, 0, 1, 2, 3]


def test_release_kv_keeps_the_tokens_only() -> None:
    made = sequence(20, 2)
    made.batch_index, made.num_computed_tokens, made.block_table, made.num_broadcast_blocks = 3, 21, [4, 5], 2
    made.candidates = {"heads": Candidates(np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=np.float32))}
    made.tree, made.pending_copies = Tree((1,), (-1,)), [(23, 22)]
    made.check_integrity()
    assert made.release_kv() == [4, 5]
    assert (made.batch_index, made.num_computed_tokens, made.block_table, made.num_broadcast_blocks) == (
        NOT_IN_BATCH,
        0,
        [],
        0,
    )
    assert (made.candidates, made.tree, made.pending_copies) == ({}, EMPTY, []) and made.num_uncomputed_tokens == 22
    made.check_integrity()


@pytest.mark.parametrize(
    "fields",
    [
        {
            "batch_index": 1,
            "num_computed_tokens": 20,
            "block_table": [1, 2],
        },  # nothing left to compute, yet not finished
        {"batch_index": 1, "num_computed_tokens": -1, "block_table": [1, 2]},
        {"batch_index": 1, "num_computed_tokens": 17, "block_table": [1]},  # computed columns without a place
        {"block_table": [1]},  # waiting, and holding blocks
        {"num_computed_tokens": 3},
        {"pending_copies": [(1, 2)]},
    ],
)
def test_integrity_check_finds_inconsistent_fields(fields: dict) -> None:
    made = sequence()
    for name, value in fields.items():
        setattr(made, name, value)
    with pytest.raises(AssertionError):
        made.check_integrity()
    if fields.get("num_computed_tokens") == 20:
        made.finish_reason = FinishReason.LENGTH
        made.check_integrity()
