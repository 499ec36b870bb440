"""Padded attention of a ForwardBatch over the paged KV cache, including trees.

Owns two backends in tensor operations with one signature, and the choice of a backend. Not here: the compiled CPU
backend (paged_cpu.py), the bridge to transformers (model/attention_bridge.py), masks (engine/runner/batch_builder.py).
`exact`: products and a softmax whose rows do not depend on other rows. `sdpa`: torch's scaled_dot_product_attention,
faster on GPUs. Each is the other's oracle in the tests, and both are oracles of `fused`, the compiled one.

Why `exact` is exact on CPU in float32: a query's result is bitwise the same whatever else is in the batch, because
 - a batched product with enough rows (min_queries) computes each output element as one chain of fused multiply-adds
   over the keys, so a key of weight 0 (a sibling in the tree, padding) changes nothing, wherever it is;
 - the chain is cut every KEY_CHUNK KV indices at fixed positions, where the library would choose its own cuts by length
   (seen: beyond 256 keys on Intel CPUs, beyond 192 on AMD CPUs); the scheduler keeps a tree's KV indices inside one
   chunk, so a drafted key is summed in the chunk of its position;
 - there are at least two products, each computed by one thread;
 - the normaliser is the same product with a matrix of ones, where a vectorised sum depends on the position of each key.
tests/unit/ops/attention/test_padded.py checks this on the machine it runs on.
Shapes: T rows, Hq query heads, Hk kv heads, G = Hq / Hk, D head_dim; a group is B x Q queries over L KV indices.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.forward_batch import ForwardBatch, PaddedMetadata

KEY_CHUNK = 192
_ONES_COLUMNS = 8
_ones_of: dict[torch.device, Tensor] = {}  # the largest needed so far


def min_queries(head_dim: int, per_head: int) -> int:
    """Fewest queries per sequence in a product, including padding; per_head query heads share a kv head.

    A product with few rows uses another kernel and rounds differently. Seen with MKL: from 3 rows at head_dim 64, 6 at
    128 and 10 at 256 on, all row counts agree; this requires a few more.
    """
    rows = max(4, -(-head_dim // 16))
    return -(-rows // per_head)


@dataclass(frozen=True)
class AttentionParams:
    """Parameters of a layer's attention scores: scale, sliding window (positions), softcap, attention sinks ([Hq])."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


GroupAttention = Callable[[Tensor, Tensor, Tensor, PaddedMetadata, AttentionParams], Tensor]


@dataclass(frozen=True)
class PagedAttention:
    """Attention of one pass: writes the new keys and values, then computes every query over the keys it may see."""

    pool: KVCache
    batch: ForwardBatch
    backend: GroupAttention

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scoring: AttentionParams) -> Tensor:
        """queries [T, Hq, D], keys and values [T, Hk, D] -> [T, Hq, D]."""
        self.pool.write(layer, self.batch.slot_mapping, keys, values)
        num_rows, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[1]

        def attend(rows: Tensor, group: PaddedMetadata) -> Tensor:
            """[B * Q, Hq, D] -> the same. The query heads of one kv head are rows of one product: [Hk, B, Q, G, D]."""
            size, width = group.query_rows.shape
            q = rows.view(size, width, num_kv_heads, -1, head_dim).permute(2, 0, 1, 3, 4)
            k, v = self._gather(layer, group, size)
            return self.backend(q, k, v, group, scoring).permute(1, 2, 0, 3, 4).reshape(rows.shape)

        if self.batch.in_order:
            return attend(queries, self.batch.padded[0])
        padded = torch.cat([queries, queries.new_zeros(1, num_heads, head_dim)])
        # Zeros, not empty: padding rows are in no group, and garbage in them would reach the scratch block.
        out = torch.zeros_like(padded)
        for group in self.batch.padded:
            rows = group.query_rows.flatten()
            out.index_copy_(0, rows, attend(padded.index_select(0, rows), group))
        return out[:num_rows]

    def _gather(self, layer: int, group: PaddedMetadata, size: int) -> Tensor:
        """Keys and values of a group: [2, Hk, B, L, D]."""
        rows = self.pool.rows[layer]
        _, num_kv_heads, _, head_dim = rows.shape
        # As rows of one matrix, a CPU copies whole blocks; along an inner dimension it took up to 3 times as long.
        pieces = group.pieces(2 * num_kv_heads, self.pool.num_blocks)
        blocks = rows.view(-1, BLOCK_TOKENS * head_dim).index_select(0, pieces)
        return blocks.view(2, num_kv_heads, size, -1, head_dim)


def attend_exact(q: Tensor, k: Tensor, v: Tensor, group: PaddedMetadata, scoring: AttentionParams) -> Tensor:
    """q [Hk, B, Q, G, D], k and v [Hk, B, L, D] -> [Hk, B, Q, G, D]; the module docstring explains what is exact."""
    num_kv_heads, size, width, per_head, head_dim = q.shape
    length = k.shape[2]
    batch, rows = num_kv_heads * size, width * per_head
    flat, keys = q.reshape(batch, rows, head_dim), k.reshape(batch, length, head_dim).transpose(1, 2)
    # In float32 whatever the model's dtype: batched bfloat16 products are several times slower on a CPU.
    scores = _products(flat.float() * scoring.scale, keys.float())
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    shaped = scores.view(num_kv_heads, size, width, per_head, length)
    shaped += group.bias(scoring.window, scores.dtype)[None, :, :, None, :]
    highest = shaped.amax(dim=-1, keepdim=True)
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(num_kv_heads, 1, 1, per_head, 1)
        highest = torch.maximum(highest, sinks)
    weights = shaped.sub_(highest).exp_().view(batch, rows, length)
    values = v.reshape(batch, length, head_dim).float()
    ones = _ones(batch, values.device)
    total: Tensor | None = None
    norm: Tensor | None = None
    for start in range(0, length, KEY_CHUNK):
        part = weights[:, :, start : start + KEY_CHUNK]
        part_total = _products(part, values[:, start : start + KEY_CHUNK])
        part_norm = _products(part, ones[:, : part.shape[2]])[:, :, :1]
        total = part_total if total is None else total + part_total
        norm = part_norm if norm is None else norm + part_norm
    assert total is not None and norm is not None
    norm = norm.view(num_kv_heads, size, width, per_head, 1)
    if scoring.sinks is not None:
        norm = norm + (sinks - highest).exp()
    return (total.view(q.shape) / norm).to(q.dtype)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """torch.bmm, but never with a single product: threads would split its rows, and few rows use another kernel."""
    return torch.bmm(a, b) if a.shape[0] > 1 else torch.bmm(torch.cat([a, a]), torch.cat([b, b]))[:1]


def _ones(batch: int, device: torch.device) -> Tensor:
    """[batch, KEY_CHUNK, _ONES_COLUMNS] of float32 ones, materialised: a product would copy an expanded tensor."""
    known = _ones_of.get(device)
    if known is None or known.shape[0] < batch:
        known = _ones_of[device] = torch.ones(batch, KEY_CHUNK, _ONES_COLUMNS, device=device)
    return known[:batch]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, group: PaddedMetadata, scoring: AttentionParams) -> Tensor:
    """The same through torch's fused attention. It supports neither softcap nor sinks; those use the exact path."""
    if scoring.softcap is not None or scoring.sinks is not None:
        return attend_exact(q, k, v, group, scoring)
    num_kv_heads, size, width, per_head, head_dim = q.shape
    # [B, Hk, G * Q, D]: queries of one kv head read the same keys, so grouped heads need no copy of them.
    queries = q.permute(1, 0, 3, 2, 4).reshape(size, num_kv_heads, per_head * width, head_dim)
    bias = group.bias(scoring.window, q.dtype)[:, None].repeat(1, 1, per_head, 1)
    out = F.scaled_dot_product_attention(
        queries, k.transpose(0, 1), v.transpose(0, 1), attn_mask=bias, scale=scoring.scale
    )
    return out.view(size, num_kv_heads, per_head, width, head_dim).permute(1, 0, 3, 2, 4)


BACKENDS: dict[str, GroupAttention] = {"exact": attend_exact, "sdpa": attend_sdpa}


def default_backend(device: torch.device, dtype: torch.dtype) -> str:
    """`fused` on a CPU, or `exact` for a dtype that it does not support; `sdpa` elsewhere."""
    if device.type != "cpu":
        return "sdpa"
    return "fused" if dtype in (torch.float32, torch.bfloat16) else "exact"


def key_chunk(backend: str) -> int | None:
    """A tree must not extend past a multiple of this many KV indices, so that its keys are summed in their final chunk;
    None: no limit."""
    return KEY_CHUNK if backend == "exact" else None
