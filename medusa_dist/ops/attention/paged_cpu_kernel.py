"""Kernel of CPU attention: one layer as one compiled loop that reads the KV cache in place.

Owns the arithmetic, compiled by numba for each dtype of the cache and kept on disk for the next process. Not here: its
caller, which has it compiled (paged_cpu.py), the same in tensor operations (padded.py).
Nothing here checks bounds or that arrays fit each other: a block table must cover its sequence, as
engine/runner/batch_builder.py ensures.

Why a query's result is bitwise the same whatever else is in the batch: every score is one chain of additions over
head_dim, in order; maxima do not depend on order; a weight is the same few operations in a loop's vector part and in
its remainder; the normaliser and each output element are one chain of additions over the KV indices, in their order,
and an index that is not visible has weight 0 and changes no sum (values are finite). So it does not matter where in a
tree a key is, how many queries are computed with it, or which thread computes it.
tests/unit/ops/attention/test_padded.py checks this on the machine it runs on.
Shapes: T rows, Hq query heads, Hk kv heads, G = Hq / Hk, D head_dim, L KV indices of a sequence up to the end of its
last block.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.attention.metadata import PagedMetadata
from medusa_dist.ops.cpu.loop_parts import VERSION, at, exp_of_negative, read, round_like, rounded
from medusa_dist.ops.cpu.numba_cache import kept_on_disk
from medusa_dist.ops.cpu.row_products_kernel import PANEL, multiply_rows
from medusa_dist.ops.cpu.row_products_kernel import VERSION as PRODUCTS_VERSION

_ZERO = np.float32(0)
_FUSED = {"contract"}  # multiply-adds, the same way everywhere; nothing is reordered

# Cached code is reused as long as this file does not change. Dependencies from other files are asserted here, so that a
# change there forces a change to this file too.
assert BLOCK_TOKENS == PANEL == 16
assert VERSION == 1
assert PRODUCTS_VERSION == 1
assert PagedMetadata._fields == (
    *("cost", "work_items", "first_rows", "num_computed_tokens", "num_new_tokens", "num_draft_tokens"),
    *("block_tables", "first_nodes", "depths", "ancestors"),
)


class Rows(NamedTuple):
    """New queries, keys and values: addresses, and the steps, in elements, from row to row and from head to head. The
    elements of a head are neighbours.
    """

    queries: int
    query_steps: tuple[int, int]
    keys: int
    key_steps: tuple[int, int]
    values: int
    value_steps: tuple[int, int]


class Pool(NamedTuple):
    """A layer's cache: keys [Hk, blocks, D, BLOCK_TOKENS], values [Hk, slots, D]; float32, or bfloat16 as int16."""

    keys: Array
    values: Array


class KernelParams(NamedTuple):
    """AttentionParams for the kernel: window and softcap are 0 if there is none. sinks: [Hq], or empty."""

    scale: np.float32
    window: int
    softcap: np.float32
    sinks: Array


@njit(nogil=True)
def _score(queries: Array, keys: Array, table: Array, first: int, scores: Array) -> None:
    """queries [R, D], keys [blocks, D, BLOCK_TOKENS], table [blocks] -> scores [R, L], from block `first` on."""
    (num, dim), length, like = queries.shape, scores.shape[1], keys[0, 0, 0]
    block_bytes = dim * BLOCK_TOKENS * keys.itemsize
    for block in range(first, length // BLOCK_TOKENS):
        source, target = keys.ctypes.data + table[block] * block_bytes, scores.ctypes.data + 4 * BLOCK_TOKENS * block
        multiply_rows(queries.ctypes.data, dim, source, BLOCK_TOKENS, dim, target, length, num, False, like)


@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def _cap(scores: Array, softcap: np.float32) -> None:
    """softcap * tanh(scores / softcap) in place."""
    for j in range(scores.size):
        t = exp_of_negative(np.float32(-2) * abs(scores[j] / softcap))
        capped = softcap * ((np.float32(1) - t) / (np.float32(1) + t))
        scores[j] = capped if scores[j] > _ZERO else -capped


@njit(nogil=True)
def _highest(scores: Array, low: int, known: int, tree: int, own: Array) -> np.float32:
    """The highest visible score."""
    seen = scores[low:known]
    fours = seen.size // 4 * 4
    a = b = c = d = np.float32(-np.inf)  # four chains: in one, each comparison would wait for the one before
    for j in range(0, fours, 4):
        a, b, c, d = max(a, seen[j]), max(b, seen[j + 1]), max(c, seen[j + 2]), max(d, seen[j + 3])
    for j in range(fours, seen.size):
        a = max(a, seen[j])
    for node in range(own.size):
        if own[node]:
            a = max(a, scores[tree + node])
    return max(a, b, c, d)


@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def _weigh(scores: Array, low: int, known: int, tree: int, own: Array, highest: np.float32) -> None:
    """Turn the scores [L] of one query into weights, e**(score - highest), in place.

    Visible are KV indices low .. known - 1 and, from index `tree` on, those of own [nodes]; others get weight 0.
    """
    part = scores[low // BLOCK_TOKENS * BLOCK_TOKENS :]
    for j in range(part.size):
        part[j] = exp_of_negative(part[j] - highest)
    for j in range(low):
        scores[j] = _ZERO
    for j in range(known, scores.size):
        node = j - tree
        if node < 0 or node >= own.size or not own[node]:
            scores[j] = _ZERO


@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def _add_up(weights: Array, first: int, sums: Array) -> None:
    """sums [R] += the sum of weights [R, L] over KV indices from block `first` on: one chain each, four in parallel."""
    begin, fours = first * BLOCK_TOKENS, weights.shape[0] // 4 * 4
    for r in range(0, fours, 4):
        a, b, c, d = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
        w, x, y, z = sums[r], sums[r + 1], sums[r + 2], sums[r + 3]
        for j in range(begin, weights.shape[1]):
            w, x, y, z = w + a[j], x + b[j], y + c[j], z + d[j]
        sums[r], sums[r + 1], sums[r + 2], sums[r + 3] = w, x, y, z
    for r in range(fours, weights.shape[0]):
        for j in range(begin, weights.shape[1]):
            sums[r] += weights[r, j]


@njit(fastmath=_FUSED, nogil=True)
def _mix(weights: Array, values: Array, table: Array, first: int, out: Array) -> None:
    """out [R, D] += weights [R, L] @ values [slots, D] of the table's blocks, from block `first` on."""
    (num, dim), length, like = out.shape, weights.shape[1], values[0, 0]
    whole = dim // PANEL * PANEL
    for block in range(first, length // BLOCK_TOKENS):
        begin, slot = block * BLOCK_TOKENS, table[block] * BLOCK_TOKENS
        mixing, target = weights.ctypes.data + 4 * begin, out.ctypes.data
        source = values.ctypes.data + slot * dim * values.itemsize
        for d in range(0, whole, PANEL):
            panel = source + d * values.itemsize
            multiply_rows(mixing, length, panel, dim, BLOCK_TOKENS, target + 4 * d, dim, num, True, like)
        for r in range(num):
            for d in range(whole, dim):
                for i in range(BLOCK_TOKENS):
                    out[r, d] += weights[r, begin + i] * read(values[slot + i, d])


@njit(nogil=True)
def _low(position: int, window: int) -> int:
    """The first position that a query at `position` may see."""
    return max(0, position - window + 1) if window else 0


@njit(nogil=True)
def _own(ancestors: Array, depths: Array, depth: int, window: int) -> Array:
    """Which nodes of its tree a node at `depth` sees: [nodes]."""
    own = ancestors.copy()
    if window:
        for node in range(own.size):
            own[node] = own[node] and depth - depths[node] < window
    return own


@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def _attend_item(
    q: Array, pool: Pool, out: Array, item: Array, head: int, reads: PagedMetadata, rules: KernelParams
) -> None:
    """Some rows of one sequence, for the query heads of one kv head."""
    s, begin, end = item[0], item[1], item[2]
    start, chain, nodes, row = (
        reads.num_computed_tokens[s],
        reads.num_new_tokens[s],
        reads.num_draft_tokens[s],
        reads.first_rows[s],
    )
    table, per_head = reads.block_tables[s], q.shape[1] // pool.values.shape[0]
    columns = start + (end if end <= chain else chain + nodes)
    length = (columns + BLOCK_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    num, dim = (end - begin) * per_head, q.shape[2]
    queries, scores = np.empty((num, dim), np.float32), np.empty((num, length), np.float32)
    for r in range(num):
        source = q[row + begin + r // per_head, head * per_head + r % per_head]
        for d in range(dim):
            queries[r, d] = source[d] * rules.scale
    # Rows are in the order of their positions, except the tree's, which follow the last known token.
    first = _low(start + min(begin, chain), rules.window) // BLOCK_TOKENS
    _score(queries, pool.keys[head], table, first, scores)
    norms = np.zeros(num, np.float32)
    for r in range(num):
        place = begin + r // per_head
        known, position = start + min(place, chain - 1) + 1, start + place
        own = reads.ancestors[0, :0].copy()
        if place >= chain:
            node = reads.first_nodes[s] + place - chain
            position = start + chain - 1 + reads.depths[node]
            own = _own(
                reads.ancestors[node, :nodes], reads.depths[reads.first_nodes[s] :], reads.depths[node], rules.window
            )
        if rules.softcap > 0:
            _cap(scores[r], rules.softcap)
        low = _low(position, rules.window)
        highest = _highest(scores[r], low, known, start + chain, own)
        if rules.sinks.size:
            sink = rules.sinks[head * per_head + r % per_head]
            highest = max(highest, sink)
            norms[r] = exp_of_negative(sink - highest)
        _weigh(scores[r], low, known, start + chain, own, highest)
    _add_up(scores, first, norms)
    mixed = np.zeros((num, dim), np.float32)
    _mix(scores, pool.values[head], table, first, mixed)
    for r in range(num):
        target = out[row + begin + r // per_head, head * per_head + r % per_head]
        for d in range(dim):
            target[d] = round_like(mixed[r, d] / norms[r], target[d])


@kept_on_disk
@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def attend(
    q: Array, pool: Pool, out: Array, reads: PagedMetadata, rules: KernelParams, share: int, shares: int
) -> None:
    """Compute part `share` of `shares` of a layer's work; all parts together are the layer.

    q [T, Hq, D] float32; out [T, Hq, D] of the pool's type.
    """
    num_heads = pool.values.shape[0]
    work = reads.work_items.shape[0] * num_heads
    for index in range(share * work // shares, (share + 1) * work // shares):
        _attend_item(q, pool, out, reads.work_items[index // num_heads], index % num_heads, reads, rules)


@kept_on_disk
@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def rotate_and_write(
    rows: Rows, cos: int, sin: int, width: int, slots: Array, pool: Pool, q: Array, begin: int, end: int
) -> None:
    """Rows begin .. end - 1: queries, rotated, to q [T, Hq, D]; keys, rotated, and values to slots [T] of the pool.

    cos, sin: addresses of [T, width], of the first elements of a head, 0 <= width <= D. Rounded where transformers'
    operations round.
    """
    like, dim = pool.values[0, 0, 0], q.shape[2]
    for t in range(begin, end):
        turned, other = at(cos, t * width, width, like), at(sin, t * width, width, like)
        for head in range(q.shape[1]):
            first = t * rows.query_steps[0] + head * rows.query_steps[1]
            _rotate(at(rows.queries, first, dim, like), turned, other, q[t, head])
        block, place = slots[t] // BLOCK_TOKENS, slots[t] % BLOCK_TOKENS
        for head in range(pool.values.shape[0]):
            first = t * rows.key_steps[0] + head * rows.key_steps[1]
            _rotate(at(rows.keys, first, dim, like), turned, other, pool.keys[head, block, :, place])
            first = t * rows.value_steps[0] + head * rows.value_steps[1]
            source, target = at(rows.values, first, dim, like), pool.values[head, slots[t]]
            for d in range(dim):
                target[d] = source[d]


@njit(fastmath=_FUSED, error_model="numpy", nogil=True)
def _rotate(x: Array, cos: Array, sin: Array, out: Array) -> None:
    """out [D] = x [D], its first elements rotated in pairs (i, i + R / 2)."""
    like, to, half = x[0], out[0], cos.size // 2
    for i in range(half):
        low, high = read(x[i]), read(x[half + i])
        c, s = read(cos[i]), read(sin[i])
        out[i] = round_like(rounded(rounded(low * c, like) - rounded(high * s, like), like), to)
        c, s = read(cos[half + i]), read(sin[half + i])
        out[half + i] = round_like(rounded(rounded(high * c, like) + rounded(low * s, like), like), to)
    for i in range(cos.size, x.size):
        out[i] = round_like(read(x[i]), to)
