"""Kernels of attention over the paged KV cache: tiles over block tables, and the sum of their splits.

Owns the arithmetic. Not here: which tiles there are (ops/attention/triton_plan.py), the launch
(ops/attention/triton_backend.py), who writes keys and values (kv_kernel.py).
One program computes TILE_M query-head pairs of one sequence that share a KV head, and reads keys and values through the
block table, TILE_N at a time.

Why a row's result is bitwise the same whatever else is in the batch: the context is cut every SPLIT KV indices, at
fixed places. Each split is summed from zero, and splits are added in order, by one program or by `merge_splits`: the
same operations on the same numbers (`_merge`), so it does not matter which. Within a split, keys are summed TILE_N at a
time from fixed places; a key that is not visible has weight 0 and changes no sum. Tile sizes never depend on the batch,
and rows of a tile do not meet in any operation.
It differs from a row that is computed without drafts by the places of drafted keys in a sum, as for any GPU kernel.
Shapes: M = TILE_M query-head pairs, N = TILE_N keys, D = PADDED_DIM, of which HEAD_DIM are real.
"""

from medusa_dist.ops.gpu.language import jit, tl

_LOG2E = tl.constexpr(1.4426950408889634)


@jit
def _merge(highest, norm, total, more_highest, more_norm, more):
    """Sum of two parts of a softmax: maxima [M] in base 2, normalisers [M], weighted values [M, D]."""
    best = tl.maximum(highest, more_highest)
    safe = tl.where(best == float("-inf"), 0.0, best)  # nothing visible so far: -inf - -inf would be NaN
    left, right = tl.exp2(highest - safe), tl.exp2(more_highest - safe)
    return best, norm * left + more_norm * right, total * left[:, None] + more * right[:, None]


@jit
def _finish(highest, norm, total, sinks, head, real, HAS_SINKS: tl.constexpr):
    """The weighted mean of the values [M, D]; zeros for rows without a key."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=real, other=0.0) * _LOG2E
        best = tl.maximum(highest, sink)
        scale = tl.exp2(highest - best)
        norm = norm * scale + tl.exp2(sink - best)
        total = total * scale[:, None]
    return total / tl.where(norm == 0.0, 1.0, norm)[:, None]


# fmt: off
@jit
def _ancestor_bits(words, row, real, first_node, num_words, TILE_N: tl.constexpr):
    # fmt: on
    """Bit c of a row's number [M] int64: tree node first_node + c is an ancestor of the row. first_node may be < 0."""
    node = tl.maximum(first_node, 0)
    word, shift = node // 64, (node % 64).to(tl.int64)
    at = words + row * num_words
    low = tl.load(at + word, mask=real, other=0).to(tl.uint64, bitcast=True)
    # Without a next word, the bits of this one again: there are no nodes that they could be taken for.
    high = tl.load(at + tl.minimum(word + 1, num_words - 1), mask=real, other=0).to(tl.uint64, bitcast=True)
    found = (low >> shift) | tl.where(shift > 0, high << ((64 - shift) % 64), 0)
    return found << tl.minimum(tl.maximum(-first_node, 0), TILE_N - 1).to(tl.int64)


# fmt: off
@jit
def _visible(column, row, real, limit, position, words, positions, first_row, computed, known, length, window,
             num_words, start, TILE_N: tl.constexpr, HAS_WINDOW: tl.constexpr):
    # fmt: on
    """Which keys, KV indices `column` [N] from `start` on, the rows [M] may read: [M, N]."""
    seen = column[None, :] < limit[:, None]
    if start + TILE_N > known:
        bits = _ancestor_bits(words, row, real, start - known, num_words, TILE_N)
        bits = bits.to(tl.uint32)  # TILE_N <= 32
        seen = seen | (((bits[:, None] >> tl.arange(0, TILE_N)[None, :]) & 1) != 0)
    if HAS_WINDOW:
        drafted = (column >= known) & (column < length)
        of_node = tl.load(positions + first_row + column - computed, mask=drafted, other=0).to(tl.int32)
        key_position = tl.where(drafted, of_node, column)
        seen = seen & (position[:, None] - key_position[None, :] < window)
    return seen


@jit
def _base2(scores, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Scores times log2(e). With softcap c, scale is divided by c, and softcap is c log2(e); else scale has log2(e)."""
    scores = scores * scale
    if HAS_SOFTCAP:
        t = tl.exp2(tl.abs(scores) * (-2.0 * _LOG2E))
        capped = softcap * ((1.0 - t) / (1.0 + t))
        scores = tl.where(scores < 0.0, -capped, capped)
    return scores


# fmt: off
@jit
def _sum_split(q, keys, values, table, begin, end, d, row, real, limit, position, words, positions, first_row, computed,
               known, length, scale, softcap, window, num_words,
               HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
               BLOCK_TOKENS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
               PRECISION: tl.constexpr):
    # fmt: on
    """KV indices begin <= j < end: maxima [M], normalisers [M], weighted values [M, D]."""
    highest, norm = tl.full([TILE_M], float("-inf"), tl.float32), tl.zeros([TILE_M], tl.float32)
    total = tl.zeros([TILE_M, PADDED_DIM], tl.float32)
    for start in range(begin, end, TILE_N):
        column = start + tl.arange(0, TILE_N)
        inside = column < end
        block = tl.load(table + column // BLOCK_TOKENS, mask=inside, other=0).to(tl.int64)
        at = (block * BLOCK_TOKENS + column % BLOCK_TOKENS) * HEAD_DIM
        k = tl.load(keys + at[None, :] + d[:, None], mask=inside[None, :] & (d < HEAD_DIM)[:, None], other=0.0)
        scores = _base2(tl.dot(q, k, input_precision=PRECISION), scale, softcap, HAS_SOFTCAP)
        seen = _visible(column, row, real, limit, position, words, positions, first_row, computed, known, length,
                        window, num_words, start, TILE_N, HAS_WINDOW)  # fmt: skip
        scores = tl.where(seen & inside[None, :], scores, float("-inf"))
        best = tl.maximum(highest, tl.max(scores, axis=1))
        safe = tl.where(best == float("-inf"), 0.0, best)
        weights = tl.exp2(scores - safe[:, None])
        rescale = tl.exp2(highest - safe)
        norm = norm * rescale + tl.sum(weights, axis=1)
        v = tl.load(values + at[:, None] + d[None, :], mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        total = tl.dot(weights.to(v.dtype), v, total * rescale[:, None], input_precision=PRECISION)
        highest = best
    return highest, norm, total


# fmt: off
@jit(do_not_specialize=["window", "num_words", "table_width", "num_partial"])
def attend_tiles(
    queries, keys, values, out, tables, sequences, items, words, positions, sinks, partial, norms,
    scale, softcap, window, num_words, table_width, query_stride, query_head_stride, kv_head_stride, num_partial,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, PER_HEAD: tl.constexpr, NUM_HEADS: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, SPLIT: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Item program_id(0) for KV head program_id(1); the integer arrays are those of TiledMetadata.

    out [T, Hq, HEAD_DIM]; partial [Hk, num_partial, HEAD_DIM] and norms [Hk, 2, num_partial], for items that are one
    split of several.
    """
    item, group = items + tl.program_id(0) * 5, tl.program_id(1)
    sequence, first = tl.load(item), tl.load(item + 1)
    split_begin, split_end, partial_row = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    facts = sequences + sequence * 5
    first_row, num_rows, computed = tl.load(facts), tl.load(facts + 1), tl.load(facts + 2)
    known, length = tl.load(facts + 3), tl.load(facts + 4)
    pair, d = first + tl.arange(0, TILE_M), tl.arange(0, PADDED_DIM)
    real = pair // PER_HEAD < num_rows
    local = tl.where(real, pair // PER_HEAD, 0)
    row, head = (first_row + local).to(tl.int64), group * PER_HEAD + pair % PER_HEAD
    place = real[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(queries + (row * query_stride + head * query_head_stride)[:, None] + d[None, :], place, 0.0)
    is_node = local >= known - computed
    limit = tl.where(is_node, known, computed + local + 1)
    position = tl.load(positions + row, mask=real, other=0).to(tl.int32)
    upper = tl.max(tl.where(real, tl.where(is_node, length, limit), 0), axis=0)
    lowest = 0
    if HAS_WINDOW:
        nearest = tl.min(tl.where(real, position, 2147483647), axis=0) - window + 1
        lowest = tl.maximum(nearest, 0) // TILE_N * TILE_N
    highest, norm = tl.full([TILE_M], float("-inf"), tl.float32), tl.zeros([TILE_M], tl.float32)
    total = tl.zeros([TILE_M, PADDED_DIM], tl.float32)
    shift = group.to(tl.int64) * kv_head_stride
    for split in range(split_begin, split_end):
        begin, end = tl.maximum(split * SPLIT, lowest), tl.minimum(split * SPLIT + SPLIT, upper)
        more_highest, more_norm, more = _sum_split(
            q, keys + shift, values + shift, tables + sequence * table_width, begin, end, d, row, real, limit, position,
            words, positions, first_row, computed, known, length, scale, softcap, window, num_words,
            HEAD_DIM, PADDED_DIM, TILE_M, TILE_N, BLOCK_TOKENS, HAS_WINDOW, HAS_SOFTCAP, PRECISION)  # fmt: skip
        highest, norm, total = _merge(highest, norm, total, more_highest, more_norm, more)
    if partial_row < 0:
        mean = _finish(highest, norm, total, sinks, head, real, HAS_SINKS)
        tl.store(out + ((row * NUM_HEADS + head) * HEAD_DIM)[:, None] + d[None, :], mean, mask=place)
    else:
        at = group.to(tl.int64) * num_partial + partial_row + tl.arange(0, TILE_M)
        tl.store(partial + at[:, None] * HEAD_DIM + d[None, :], total, mask=place)
        at += group.to(tl.int64) * num_partial
        tl.store(norms + at, highest, mask=real)
        tl.store(norms + at + num_partial, norm, mask=real)


# fmt: off
@jit(do_not_specialize=["num_partial"])
def merge_splits(
    out, sequences, merges, sinks, partial, norms, num_partial,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, PER_HEAD: tl.constexpr, NUM_HEADS: tl.constexpr,
    TILE_M: tl.constexpr, HAS_SINKS: tl.constexpr,
):
    # fmt: on
    """Adds the splits of tile program_id(0), KV head program_id(1), in order."""
    merge, group = merges + tl.program_id(0) * 5, tl.program_id(1)
    sequence, first, num_splits = tl.load(merge), tl.load(merge + 1), tl.load(merge + 2)
    partial_row, num_pairs = tl.load(merge + 3), tl.load(merge + 4)
    first_row = tl.load(sequences + sequence * 5)
    place, d = tl.arange(0, TILE_M), tl.arange(0, PADDED_DIM)
    real = place < num_pairs
    pair = first + place
    row, head = (first_row + pair // PER_HEAD).to(tl.int64), group * PER_HEAD + pair % PER_HEAD
    inside = real[:, None] & (d < HEAD_DIM)[None, :]
    highest, norm = tl.full([TILE_M], float("-inf"), tl.float32), tl.zeros([TILE_M], tl.float32)
    total = tl.zeros([TILE_M, PADDED_DIM], tl.float32)
    for split in range(0, num_splits):
        at = group.to(tl.int64) * num_partial + partial_row + split * num_pairs + place
        more = tl.load(partial + at[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
        at += group.to(tl.int64) * num_partial
        more_highest = tl.load(norms + at, mask=real, other=float("-inf"))
        more_norm = tl.load(norms + at + num_partial, mask=real, other=0.0)
        highest, norm, total = _merge(highest, norm, total, more_highest, more_norm, more)
    mean = _finish(highest, norm, total, sinks, head, real, HAS_SINKS)
    tl.store(out + ((row * NUM_HEADS + head) * HEAD_DIM)[:, None] + d[None, :], mean, mask=inside)
