"""Paged attention against the definition, and the bitwise independence of `exact` and `paged_cpu` from what else is in
the batch."""

import random

import pytest
import torch

from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.metadata import PaddedMetadata
from medusa_dist.ops.attention.padded import KEY_CHUNK
from medusa_dist.ops.attention.registry import BACKENDS
from medusa_dist.ops.forward_batch import ForwardBatch
from tests.support.attention_cases import (
    BACKENDS_HERE,
    SCORINGS,
    Contents,
    Heads,
    attend,
    by_definition,
    random_pieces,
)
from tests.support.plan_helpers import Piece, make_step, random_parents, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")
BITWISE = ["exact", "paged_cpu"]


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_attention_equals_its_definition_in_float64(backend: str, scoring: AttentionParams) -> None:
    for seed in range(2):
        pieces = random_pieces(seed)
        contents = Contents.random(pieces, Heads(6, 3, 8), seed)
        got = attend(pieces, contents, scoring, backend, seed)
        assert torch.allclose(got.double(), by_definition(pieces, contents, scoring), atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("per_head", [1, 2, 3, 8])
def test_grouped_heads_equal_the_definition(backend: str, per_head: int) -> None:
    pieces = random_pieces(7)
    contents = Contents.random(pieces, Heads(2 * per_head, 2, 8), 1)
    got = attend(pieces, contents, AttentionParams(0.35), backend)
    assert torch.allclose(got.double(), by_definition(pieces, contents, AttentionParams(0.35)), atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_contexts_of_several_key_chunks_equal_the_definition(backend: str) -> None:
    pieces = [Piece(KEY_CHUNK - 1, 1, (-1,)), Piece(2 * KEY_CHUNK - 3, 2, (-1, -1, 0)), Piece(KEY_CHUNK + 40, 1)]
    contents = Contents.random(pieces, Heads(6, 3, 8), 2)
    for scoring in (AttentionParams(0.3), AttentionParams(0.3, window=200)):
        got = attend(pieces, contents, scoring, backend)
        assert torch.allclose(got.double(), by_definition(pieces, contents, scoring), atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_window_counts_positions_not_kv_columns(backend: str) -> None:
    """Siblings stand between a node and its parent; the window must not be used up by them."""
    pieces = [Piece(10, 1, (-1, -1, -1, -1, 0))]
    contents = Contents.random(pieces, Heads(2, 1, 8), 3)
    got = attend(pieces, contents, AttentionParams(0.3, window=2), backend)
    keys, values = contents.columns(pieces, 0, [11, 15])  # its parent and itself
    weights = torch.softmax(keys[:, 0] @ contents.q[5, 0] * 0.3, 0)
    assert torch.allclose(got[5, 0], weights @ values[:, 0], atol=1e-5)


@pytest.mark.parametrize("backend", BITWISE)
def test_rows_a_query_cannot_see_do_not_change_it(backend: str) -> None:
    """What a query may not see can be anything finite: the result is the same, bit for bit."""
    pieces = [Piece(20, 1, (-1, 0, -1, 2)), Piece(40, 3)]
    contents = Contents.random(pieces, Heads(6, 3, 8), 4)
    before = attend(pieces, contents, AttentionParams(0.3), backend)
    for x in (contents.k, contents.v):
        x[3:5] = 100.0  # the second branch
    after = attend(pieces, contents, AttentionParams(0.3), backend)
    assert torch.equal(after[:3], before[:3]) and torch.equal(after[5:], before[5:])
    assert not torch.equal(after[3], before[3])


# --- bitwise ---


def lone(pieces: list[Piece], contents: Contents, index: int, visible: list[int], piece: int) -> tuple:
    """The row as non-speculative decoding has it: alone, everything it sees at its position, already written."""
    keys, values = contents.columns(pieces, piece, visible)
    one = Piece(len(visible) - 1, 1)
    parts = (contents.q[index : index + 1], keys[-1:], values[-1:])
    return [one], Contents(contents.heads, *parts, [(keys[:-1], values[:-1])])


def chain(pieces: list[Piece], contents: Contents, index: int, visible: list[int], piece: int, length: int) -> tuple:
    """The row as the last of a prompt chunk."""
    keys, values = contents.columns(pieces, piece, visible)
    start = len(visible) - length
    q = torch.randn(length, *contents.q.shape[1:])
    q[-1] = contents.q[index]
    return [Piece(start, length)], Contents(
        contents.heads, q, keys[start:], values[start:], [(keys[:start], values[:start])]
    )


def check_bitwise(pieces: list[Piece], contents: Contents, scoring: AttentionParams, seed: int, backend: str) -> None:
    plan, tables, _ = make_step(pieces, seed)
    together = attend(pieces, contents, scoring, backend, seed)
    for index, row in enumerate(rows_of(pieces, plan, tables)):
        alone = attend(*lone(pieces, contents, index, row.visible, row.piece), scoring, backend, seed)
        assert torch.equal(together[index], alone[0]), f"row {index} of {pieces}"


@pytest.mark.parametrize("backend", BITWISE)
@pytest.mark.parametrize("scoring", ["plain", "window", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_row_alone_equals_its_row_in_a_batch_with_trees(seed: int, scoring: str, backend: str) -> None:
    pieces = random_pieces(100 + seed)
    check_bitwise(pieces, Contents.random(pieces, Heads(6, 3, 8), seed), SCORINGS[scoring], seed, backend)


@pytest.mark.parametrize("backend", BITWISE)
@pytest.mark.parametrize("known", [17, 191, 192, 193, 255, 256, 257, 300, 383, 384, 385, 500, 512, 577, 700])
def test_row_alone_equals_its_row_in_a_batch_at_any_length(known: int, backend: str) -> None:
    """Across the borders of key chunks and blocks; with `exact`, the scheduler keeps a tree inside one chunk."""
    rng = random.Random(known)
    size = 15 if backend == "paged_cpu" else min(15, KEY_CHUNK - known % KEY_CHUNK)
    pieces = [Piece(known - 1, 1, random_parents(rng, size)), Piece(known + 30, 1), Piece(5, 1, (-1, -1))]
    check_bitwise(pieces, Contents.random(pieces, Heads(6, 2, 16), known), AttentionParams(0.25), 0, backend)


@pytest.mark.parametrize("backend", BITWISE)
@pytest.mark.parametrize("heads", [Heads(9, 3, 64), Heads(4, 1, 64), Heads(5, 1, 64), Heads(7, 1, 64)], ids=str)
def test_row_is_the_same_alone_in_a_batch_and_with_two_threads(heads: Heads, backend: str) -> None:
    torch.set_num_threads(2)
    pieces = [Piece(300, 1, (-1, 0, -1)), Piece(12, 1), Piece(290, 1)]
    contents = Contents.random(pieces, heads, 6)
    check_bitwise(pieces, contents, AttentionParams(0.125), 2, backend)
    two = attend(pieces, contents, AttentionParams(0.125), backend)
    torch.set_num_threads(1)
    assert torch.equal(attend(pieces, contents, AttentionParams(0.125), backend), two)


SHAPES = [(1, 1, 64), (4, 4, 32), (8, 1, 16), (9, 3, 64), (2, 2, 128), (2, 2, 256), (12, 4, 80)]


@pytest.mark.parametrize("backend", BITWISE)
@pytest.mark.parametrize("heads", [Heads(*shape) for shape in SHAPES], ids=str)
def test_row_alone_equals_its_row_in_a_batch_for_any_head_shape(heads: Heads, backend: str) -> None:
    pieces = [Piece(90, 1, (-1, -1, 0, 1, 0, 4)), Piece(130, 1), Piece(0, 20)]
    check_bitwise(pieces, Contents.random(pieces, heads, 5), AttentionParams(heads.dim**-0.5), 1, backend)


@pytest.mark.parametrize("backend", BITWISE)
@pytest.mark.parametrize("num", [2, 3, 8, 31, 64])
def test_row_alone_equals_its_row_among_many_sequences(num: int, backend: str) -> None:
    rng = random.Random(num)
    pieces = [Piece(rng.randrange(33, 120), 1, random_parents(rng, rng.choice([0, 2]))) for _ in range(num)]
    contents = Contents.random(pieces, Heads(6, 3, 8), num)
    plan, tables, _ = make_step(pieces, 0)
    together = attend(pieces, contents, AttentionParams(0.3), backend)
    rows = rows_of(pieces, plan, tables)
    for index in rng.sample(range(len(rows)), min(6, len(rows))):
        row = rows[index]
        alone = attend(*lone(pieces, contents, index, row.visible, row.piece), AttentionParams(0.3), backend)
        assert torch.equal(together[index], alone[0])


@pytest.mark.parametrize("backend", BITWISE)
@pytest.mark.parametrize("length", [2, 5, 16, 40, 64, 260])
def test_row_alone_equals_the_last_row_of_a_prompt_chunk(length: int, backend: str) -> None:
    for known in (270, 290, 515):
        pieces = [Piece(known, 1)]
        contents = Contents.random(pieces, Heads(6, 3, 8), known)
        visible = list(range(known + 1))
        torch.manual_seed(0)
        expected = attend(pieces, contents, AttentionParams(0.3), backend)[0]
        assert torch.equal(
            attend(*chain(pieces, contents, 0, visible, 0, length), AttentionParams(0.3), backend)[-1], expected
        )


def test_padding_rows_come_out_as_zeros() -> None:
    """Padding rows belong to no group; garbage in them would enter the scratch block, and 0 x NaN is NaN for others."""
    pool = KVCache.allocate(1, 1, 8, 3, torch.float32, torch.device("cpu"))
    filler = torch.full((64, 8), float("nan"))  # memory that an allocator may hand out again
    del filler
    batch = ForwardBatch(
        *(torch.zeros(4, dtype=torch.int64) for _ in range(3)),
        copy_sources=torch.zeros(0, dtype=torch.int64),
        copy_targets=torch.zeros(0, dtype=torch.int64),
        logits_rows=torch.zeros(0, dtype=torch.int64),
        prompt_logprob_rows=torch.zeros(0, dtype=torch.int64),
        attention=PaddedMetadata((), in_order=False),
    )
    rows = torch.ones(4, 1, 8)
    out = BACKENDS["exact"](8, 1, torch.float32)(0, rows, rows, rows, AttentionParams(1.0), pool, batch)
    assert torch.equal(out, torch.zeros(4, 1, 8))


@pytest.mark.parametrize("seed", range(12))
def test_paged_cpu_row_does_not_depend_on_how_the_work_is_shared(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Any head size, rows per piece of work, window and number of threads; trees of up to 63 nodes, block edges."""
    rng = random.Random(seed)
    torch.set_num_threads(rng.choice([1, 2]))
    monkeypatch.setattr("medusa_dist.ops.attention.paged_cpu._WORTH_SHARING", rng.choice([0, 20_000]))
    groups = rng.choice([1, 2, 3])
    heads = Heads(groups * rng.choice([1, 2, 3, 4, 5, 8]), groups, rng.randrange(1, 131))
    starts, chains, sizes = [0, 1, 15, 16, 17, 31, 32, 200], [1, 1, 2, 15, 16, 17, 33], [0, 1, 16, 63]
    pieces = [
        Piece(rng.choice(starts), rng.choice(chains), random_parents(rng, rng.choice(sizes)))
        for _ in range(rng.choice([1, 2, 4]))
    ]
    contents = Contents.random(pieces, heads, seed)
    scoring = AttentionParams(
        heads.dim**-0.5,
        window=rng.choice([None, 1, 2, 16, 17, 100]),
        softcap=rng.choice([None, 30.0]),
        sinks=rng.choice([None, torch.randn(heads.query)]),
    )
    monkeypatch.setattr("medusa_dist.ops.attention.paged_cpu.ROWS_OF_ITEM", rng.choice([1, 2, 3, 7, 64]))
    together = attend(pieces, contents, scoring, "paged_cpu", seed)
    assert torch.allclose(together.double(), by_definition(pieces, contents, scoring), atol=2e-5)
    monkeypatch.setattr("medusa_dist.ops.attention.paged_cpu.ROWS_OF_ITEM", 16)
    assert torch.equal(attend(pieces, contents, scoring, "paged_cpu", seed + 1), together)
    rows = rows_of(pieces, *make_step(pieces)[:2])
    for index in rng.sample(range(len(rows)), min(3, len(rows))):
        alone = attend(*lone(pieces, contents, index, rows[index].visible, rows[index].piece), scoring, "paged_cpu")
        assert torch.equal(together[index], alone[0]), f"row {index}"
