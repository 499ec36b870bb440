"""Kernel that rotates queries and keys, and writes keys and values into the paged KV cache.

Owns the arithmetic of rotary embedding on a GPU and its launch. Not here: cosines and sines (transformers' modules make
them), the same in torch (ops/attention/backend.py).
It rounds where transformers' `apply_rotary_pos_emb` rounds, so its bits are the same.
Shapes: T rows, Hq query heads, Hk KV heads, D head size, R <= D rotated elements; N slots of one layer's cache.
"""

from torch import Tensor

from medusa_dist.ops.gpu.language import jit, padded, tl
from medusa_dist.ops.gpu.launch import KernelLaunch

_HEADS = 4  # heads of one program


# fmt: off
@jit
def _rotated(x, heads, d, place, row, cos, sin, angle_stride, stride, head_stride, ROTATED: tl.constexpr):
    # fmt: on
    """x * cos + rotate_half(x) * sin of row `row`: [heads, D]; elements from ROTATED on stay as they are."""
    at = x + row * stride + heads[:, None] * head_stride
    own = tl.load(at + d[None, :], mask=place, other=0.0)
    turned = d < ROTATED
    low = d < ROTATED // 2
    partner = tl.where(low, d + ROTATED // 2, d - ROTATED // 2)
    other = tl.load(at + partner[None, :], mask=place & turned[None, :], other=0.0).to(tl.float32)
    c = tl.load(cos + row * angle_stride + d, mask=turned, other=0.0).to(tl.float32)
    s = tl.load(sin + row * angle_stride + d, mask=turned, other=0.0).to(tl.float32)
    other = tl.where(low[None, :], -other, other)
    left = (own.to(tl.float32) * c[None, :]).to(own.dtype).to(tl.float32)
    right = (other * s[None, :]).to(own.dtype).to(tl.float32)
    return tl.where(turned[None, :], (left + right).to(own.dtype), own)


# fmt: off
@jit(do_not_specialize=["slot_stride_heads"])
def rotate_and_write(
    q, k, v, cos, sin, slots, q_out, key_cache, value_cache,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, angle_stride, slot_stride_heads,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
    HEADS: tl.constexpr, ROTATED: tl.constexpr,
):
    # fmt: on
    """Row program_id(0), HEADS heads from HEADS * program_id(1) on: first of the KV heads, then of the query heads.

    ROTATED = 0: keys are written as they are, and there are no programs for query heads.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, PADDED_DIM)
    kv_parts: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    if part < kv_parts:
        heads = part * HEADS + tl.arange(0, HEADS)
        place = (heads < NUM_KV_HEADS)[:, None] & (d < HEAD_DIM)[None, :]
        at = tl.load(slots + row) * HEAD_DIM + heads[:, None].to(tl.int64) * slot_stride_heads + d[None, :]
        if ROTATED > 0:
            key = _rotated(k, heads, d, place, row, cos, sin, angle_stride, k_stride, k_head_stride, ROTATED)
        else:
            key = tl.load(k + row * k_stride + heads[:, None] * k_head_stride + d[None, :], mask=place, other=0.0)
        tl.store(key_cache + at, key, mask=place)
        value = tl.load(v + row * v_stride + heads[:, None] * v_head_stride + d[None, :], mask=place, other=0.0)
        tl.store(value_cache + at, value, mask=place)
    elif ROTATED > 0:
        heads = (part - kv_parts) * HEADS + tl.arange(0, HEADS)
        place = (heads < NUM_HEADS)[:, None] & (d < HEAD_DIM)[None, :]
        query = _rotated(q, heads, d, place, row, cos, sin, angle_stride, q_stride, q_head_stride, ROTATED)
        tl.store(q_out + (row * NUM_HEADS + heads[:, None]) * HEAD_DIM + d[None, :], query, mask=place)


def write_kv(
    queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, planes: Tensor, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Write keys and values [T, Hk, D] to slots [T] of planes [2, Hk, N, D], one layer of the cache.

    angles: cosines and sines [T, R]; with them, queries [T, Hq, D] and keys are rotated before. -> the queries.
    """
    num_rows, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[1]
    queries, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, keys, values))
    cos, sin = angles or (queries, queries)  # not read
    rotated = 0 if angles is None else cos.shape[-1]
    out = queries if angles is None else queries.new_empty(queries.shape)
    assert keys.dtype == values.dtype == planes.dtype and planes.is_contiguous()
    assert cos.stride() == sin.stride() and cos.stride(-1) == 1 and rotated <= head_dim
    programs = -(-num_kv_heads // _HEADS) + (0 if angles is None else -(-num_heads // _HEADS))
    KernelLaunch(
        rotate_and_write,
        (num_rows, programs),
        {
            **{"q": queries, "k": keys, "v": values, "cos": cos, "sin": sin, "slots": slots, "q_out": out},
            **dict(zip(("key_cache", "value_cache"), planes.unbind(0), strict=True)),
            **{"q_stride": queries.stride(0), "q_head_stride": queries.stride(1)},
            **{"k_stride": keys.stride(0), "k_head_stride": keys.stride(1)},
            **{"v_stride": values.stride(0), "v_head_stride": values.stride(1)},
            **{"angle_stride": cos.stride(0), "slot_stride_heads": planes.stride(1)},
        },
        {
            **{"NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim},
            **{"PADDED_DIM": padded(head_dim), "HEADS": _HEADS, "ROTATED": rotated},
        },
        num_warps=2,
    ).run()
    return out
