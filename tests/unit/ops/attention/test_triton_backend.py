"""Triton's attention in the interpreter: against the definition, and bitwise the same whatever else is in the batch."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medusa_dist.engine.runner.batch_builder import prepare
from medusa_dist.ops.attention import triton_plan
from medusa_dist.ops.attention.backend import AttentionParams, RotaryAngles
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.metadata import TiledMetadata
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.gpu.language import padded
from tests.support.attention_cases import CPU, Contents, Heads, attend, by_definition, needs_triton
from tests.support.plan_helpers import Piece, make_step, random_parents

pytestmark = pytest.mark.usefixtures("one_thread")
GPU = torch.device("cuda", 0)


def part(pieces: list[Piece], contents: Contents, index: int) -> tuple[list[Piece], Contents]:
    """One sequence alone."""
    sizes = [p.chain + len(p.parents) for p in pieces]
    rows = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
    parts = contents.q[rows], contents.k[rows], contents.v[rows]
    return [pieces[index]], Contents(contents.heads, *parts, [contents.old[index]])


def tiles_of(pieces: list[Piece], head_dim: int, per_head: int) -> TiledMetadata:
    batch = prepare(*make_step(pieces)[:2], CPU, TritonBackend(head_dim, per_head, torch.float32))
    return batch.attention.tiles(triton_plan.tile_shape(head_dim, torch.float32), per_head)


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small splits, so that short contexts have several."""
    monkeypatch.setattr(triton_plan, "_SPLIT", 32)


def random_case(seed: int) -> tuple[list[Piece], Heads, AttentionParams]:
    """Any head size, group, window; trees of up to 63 nodes and beyond a word; empty contexts; edges of blocks, tiles
    and splits."""
    rng = random.Random(seed)
    groups = rng.choice([1, 2, 3])
    heads = Heads(groups * rng.choice([1, 2, 3, 5, 7, 8]), groups, rng.choice([8, 13, 16, 31, 64, 80, 97]))
    starts, chains, sizes = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 100, 131], [1, 1, 2, 16, 17, 37], [0, 1, 16, 63, 70]
    pieces = [
        Piece(rng.choice(starts), rng.choice(chains), random_parents(rng, rng.choice(sizes)))
        for _ in range(rng.choice([1, 2, 3]))
    ]
    scoring = AttentionParams(
        heads.dim**-0.5,
        window=rng.choice([None, 1, 2, 5, 16, 17, 40]),
        softcap=rng.choice([None, 30.0]),
        sinks=rng.choice([None, torch.randn(heads.query, generator=torch.Generator().manual_seed(seed))]),
    )
    return pieces, heads, scoring


@needs_triton
@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("seed", range(8))
def test_random_batches_equal_the_definition_and_each_sequence_alone(seed: int) -> None:
    pieces, heads, scoring = random_case(seed)
    contents = Contents.random(pieces, heads, seed)
    together = attend(pieces, contents, scoring, "triton", seed)
    assert torch.allclose(together.double(), by_definition(pieces, contents, scoring), atol=2e-5)
    index = seed % len(pieces)
    begin = sum(p.chain + len(p.parents) for p in pieces[:index])
    alone = attend(*part(pieces, contents, index), scoring, "triton", seed + 1)
    assert torch.equal(together[begin : begin + alone.shape[0]], alone)


@needs_triton
@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("seed", range(4))
def test_spread_tiles_give_the_bits_of_whole_tiles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    pieces = [Piece(150, 1, random_parents(rng, 5)), Piece(97, 1), Piece(70, 9)]
    heads, scoring = Heads(6, 2, 16), AttentionParams(0.25, window=rng.choice([None, 60]), sinks=torch.randn(6))
    contents = Contents.random(pieces, heads, seed)
    items = tiles_of(pieces, 16, 3).items
    assert (items[:, 4] >= 0).any(), "nothing was spread"
    spread = attend(pieces, contents, scoring, "triton")
    monkeypatch.setattr(triton_plan, "_SPREAD_TILES", 0)
    assert torch.equal(attend(pieces, contents, scoring, "triton"), spread)


@needs_triton
@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("chain", [2, 5, 17, 40])
def test_row_of_a_prompt_chunk_has_the_bits_of_the_row_alone(chain: int) -> None:
    """However a prompt is cut into chunks, and in decoding, where its sequence has a row of its own."""
    pieces = [Piece(75, chain)]
    contents = Contents.random(pieces, Heads(6, 3, 8), chain)
    whole = attend(pieces, contents, AttentionParams(0.3), "triton")
    known = 75 + chain - 1
    keys, values = contents.columns(pieces, 0, list(range(known)))
    lone = Contents(contents.heads, contents.q[-1:], contents.k[-1:], contents.v[-1:], [(keys, values)])
    assert torch.equal(attend([Piece(known, 1)], lone, AttentionParams(0.3), "triton"), whole[-1:])


@needs_triton
def test_rows_a_query_cannot_see_do_not_change_it() -> None:
    pieces = [Piece(20, 1, (-1, 0, -1, 2)), Piece(40, 3)]
    contents = Contents.random(pieces, Heads(6, 3, 8), 4)
    before = attend(pieces, contents, AttentionParams(0.3), "triton")
    for x in (contents.k, contents.v):
        x[3:5] = 100.0  # the second branch
    after = attend(pieces, contents, AttentionParams(0.3), "triton")
    assert torch.equal(after[:3], before[:3]) and torch.equal(after[5:], before[5:])
    assert not torch.equal(after[3], before[3])


@needs_triton
def test_a_layer_of_another_head_shape_reads_the_same_batch() -> None:
    """As the prefix layer of heads does: the backend and the batch are the model's, head size and groups its own."""
    pieces = [Piece(40, 1, (-1, 0, 0, 1)), Piece(9, 3)]
    own = Contents.random(pieces, Heads(4, 1, 24), 8)
    plan, tables, num_blocks = make_step(pieces)
    backend, pool = TritonBackend(16, 3, torch.float16), KVCache.allocate(1, 1, 24, num_blocks, torch.float32, CPU)
    for index, piece in enumerate(pieces):
        columns = torch.arange(piece.start)
        slots = torch.from_numpy(tables[plan.batch_indices[index]])[columns // 16] * 16 + columns % 16
        pool.write(0, slots, *own.old[index])
    got = backend(0, own.q, own.k, own.v, AttentionParams(0.2), pool, prepare(plan, tables, CPU, backend))
    assert torch.allclose(got.double(), by_definition(pieces, own, AttentionParams(0.2)), atol=2e-5)


@needs_triton
def test_later_drafts_do_not_change_a_row() -> None:
    """A node's result depends on its ancestors and their places, not on what is drafted after it."""
    rng = random.Random(3)
    parents = random_parents(rng, 63)
    contents = Contents.random([Piece(50, 1, parents)], Heads(4, 2, 16), 3)
    whole = attend([Piece(50, 1, parents)], contents, AttentionParams(0.25), "triton")
    few = Contents(contents.heads, contents.q[:20], contents.k[:20], contents.v[:20], contents.old)
    assert torch.equal(attend([Piece(50, 1, parents[:19])], few, AttentionParams(0.25), "triton"), whole[:20])


@needs_triton
def test_float16_is_as_near_to_the_definition_as_exact() -> None:
    pieces = [Piece(60, 1, (-1, 0, 0, 2)), Piece(0, 7)]
    contents = Contents.random(pieces, Heads(8, 2, 64), 5).to(torch.float16)
    expected = by_definition(pieces, contents, AttentionParams(0.125))
    got = attend(pieces, contents, AttentionParams(0.125), "triton")
    worst = (attend(pieces, contents, AttentionParams(0.125), "exact").double() - expected).abs().max()
    assert got.dtype == torch.float16 and (got.double() - expected).abs().max() < worst + 2e-3


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [8, 6])
def test_rotary_gives_the_bits_of_rotated_inputs_and_writes_the_same_cache(width: int, dtype: torch.dtype) -> None:
    pieces = [Piece(18, 1, (-1, 0, 0)), Piece(3, 2)]
    contents = Contents.random(pieces, Heads(6, 3, 8), 6).to(dtype)
    plan, tables, num_blocks = make_step(pieces)
    angles = torch.rand(contents.q.shape[0], width // 2) * 6
    rotary = RotaryAngles(*(torch.cat([x, x], dim=-1).to(dtype) for x in (angles.cos(), angles.sin())))
    made: list[tuple[Tensor, Tensor]] = []
    for params in (AttentionParams(0.3, rotary=rotary), AttentionParams(0.3)):
        inputs = (contents.q, contents.k) if params.rotary else (rotary.rotate(contents.q), rotary.rotate(contents.k))
        backend, pool = TritonBackend(8, 2, dtype), KVCache.allocate(1, 3, 8, num_blocks, dtype, CPU)
        batch = prepare(plan, tables, CPU, backend)
        made.append((backend(0, *inputs, contents.v, params, pool, batch), pool.rows))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    slots = batch.slot_mapping
    assert torch.equal(pool.rows[0, 0][:, slots], rotary.rotate(contents.k).transpose(0, 1))
    assert torch.equal(pool.rows[0, 1][:, slots], contents.v.transpose(0, 1))
    untouched = torch.ones(pool.rows.shape[3], dtype=torch.bool).index_fill_(0, slots, False)
    assert not pool.rows[:, :, :, untouched].any()


def test_sequences_without_room_for_their_splits_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece(3000, 1), Piece(900, 1), Piece(10, 1)]
    for rows, spread in ((100, {0, 1}), (15, {0}), (2, set())):
        monkeypatch.setattr(triton_plan, "_SCRATCH_ROWS", rows)
        made = tiles_of(pieces, 8, 1)
        assert set(made.merges[:, 0].tolist()) == spread
        assert made.num_scratch_rows == int((made.merges[:, 2] * made.merges[:, 4]).sum()) <= rows


@pytest.mark.parametrize("seed", range(5))
def test_items_cover_each_pair_and_split_once(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [
        Piece(rng.randrange(900), rng.choice([1, 1, 30, 200]), random_parents(rng, rng.choice([0, 5, 63])))
        for _ in range(4)
    ]
    per_head = rng.choice([1, 3, 8])
    made = tiles_of(pieces, 64, per_head)
    shape = triton_plan.tile_shape(64, torch.float32)
    covered: dict[tuple[int, int], list[int]] = {}
    for sequence, first, begin, end, _ in made.items.tolist():
        covered.setdefault((sequence, first), []).extend(range(begin, end))
    for index, piece in enumerate(pieces):
        rows = piece.chain + len(piece.parents)
        for first in range(0, rows * per_head, shape.pairs):
            last = min(first + shape.pairs, rows * per_head) - 1
            row = last // per_head
            keys = piece.start + (row + 1 if row < piece.chain else rows)
            assert sorted(covered.pop((index, first))) == list(range(-(-keys // shape.split)))
    assert not covered
    scratch = np.concatenate([np.arange(row, row + 1) for row in made.items[:, 4].tolist() if row >= 0] or [[]])
    assert np.unique(scratch).size == scratch.size


def test_tile_sizes_do_not_depend_on_the_batch_and_fit_the_kernels() -> None:
    for dim in (8, 64, 80, 96, 128, 192, 256):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            shape = triton_plan.tile_shape(dim, dtype)
            assert shape.split % shape.keys == 0 and shape.keys <= 32 and shape.keys == padded(shape.keys)
            assert replace(shape) == triton_plan.tile_shape(dim, dtype)


# --- on a GPU: `make test-gpu` ---


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(24))
def test_a_gpu_gives_the_definition_and_the_bits_of_each_sequence_alone(seed: int, dtype: torch.dtype) -> None:
    pieces, heads, scoring = random_case(seed)
    pieces = [replace(piece, start=piece.start * 17) for piece in pieces]  # several splits of their real size
    contents = Contents.random(pieces, heads, seed).to(dtype)
    together = attend(pieces, contents, scoring, "triton", seed, GPU)
    tolerance = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert torch.allclose(together.double(), by_definition(pieces, contents, scoring), atol=tolerance)
    begin = 0
    for index, piece in enumerate(pieces):
        alone = attend(*part(pieces, contents, index), scoring, "triton", seed + 1, GPU)
        assert torch.equal(together[begin : begin + alone.shape[0]], alone), index
        begin += piece.chain + len(piece.parents)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_spread_tiles_the_bits_of_whole_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece(3000, 1, random_parents(random.Random(1), 15)), Piece(1500, 1), Piece(600, 9)]
    contents = Contents.random(pieces, Heads(32, 8, 128), 1).to(dtype)
    spread = attend(pieces, contents, AttentionParams(0.09), "triton", device=GPU)
    monkeypatch.setattr(triton_plan, "_SPREAD_TILES", 0)
    assert torch.equal(attend(pieces, contents, AttentionParams(0.09), "triton", device=GPU), spread)


@pytest.mark.gpu
@pytest.mark.parametrize("chain", [2, 33, 300])
def test_a_gpu_gives_a_row_of_a_prompt_chunk_the_bits_of_the_row_alone(chain: int) -> None:
    heads, scoring = Heads(16, 4, 128), AttentionParams(0.09)
    contents = Contents.random([Piece(700, chain)], heads, chain).to(torch.bfloat16)
    whole = attend([Piece(700, chain)], contents, scoring, "triton", device=GPU)
    known = 700 + chain - 1
    keys, values = contents.columns([Piece(700, chain)], 0, list(range(known)))
    lone = Contents(heads, contents.q[-1:], contents.k[-1:], contents.v[-1:], [(keys, values)])
    assert torch.equal(attend([Piece(known, 1)], lone, scoring, "triton", device=GPU), whole[-1:])
