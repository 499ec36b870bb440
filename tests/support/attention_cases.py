"""Random batches of rows for attention, and one call of a backend on them."""

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from medusa_dist.engine.runner.batch_builder import prepare
from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.registry import BACKENDS
from medusa_dist.ops.gpu.language import refusal
from tests.support.plan_helpers import Piece, make_step, random_parents, rows_of

CPU = torch.device("cpu")

LAYERS, LAYER = 2, 1

needs_triton = pytest.mark.skipif(refusal(CPU) is not None, reason=f"triton {refusal(CPU)}, or in its interpreter")
BACKENDS_HERE = [pytest.param(name, marks=[needs_triton] if name == "triton" else []) for name in BACKENDS]


@dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    dim: int


@dataclass(frozen=True)
class Contents:
    """Queries, keys and values of a step: of the rows of the pass, and of each sequence's computed columns."""

    heads: Heads
    q: Tensor
    k: Tensor
    v: Tensor
    old: list[tuple[Tensor, Tensor]]

    @classmethod
    def random(cls, pieces: list[Piece], heads: Heads, seed: int) -> "Contents":
        g = torch.Generator().manual_seed(seed)
        total = sum(p.chain + len(p.parents) for p in pieces)
        q = 2 * torch.randn(total, heads.query, heads.dim, generator=g)
        k, v = (torch.randn(total, heads.kv, heads.dim, generator=g) for _ in range(2))
        old = [tuple(torch.randn(p.start, heads.kv, heads.dim, generator=g) for _ in range(2)) for p in pieces]
        return cls(heads, q, k, v, old)

    def to(self, dtype: torch.dtype) -> "Contents":
        old = [(k.to(dtype), v.to(dtype)) for k, v in self.old]
        return Contents(self.heads, self.q.to(dtype), self.k.to(dtype), self.v.to(dtype), old)

    def columns(self, pieces: list[Piece], piece: int, columns: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values [L, Hk, D] of some columns of a sequence."""
        first = sum(p.chain + len(p.parents) for p in pieces[:piece])
        start = pieces[piece].start
        end = first + pieces[piece].chain + len(pieces[piece].parents)
        both = ((self.k, self.old[piece][0]), (self.v, self.old[piece][1]))
        return tuple(torch.cat([old[:start], new[first:end]])[columns] for new, old in both)


def attend(
    pieces: list[Piece],
    contents: Contents,
    scoring: AttentionParams,
    backend: str,
    seed: int = 0,
    device: torch.device = CPU,
) -> Tensor:
    """[T, Hq, D] through plan, tables, pool and backend, on the device; the result is on the CPU."""
    plan, tables, num_blocks = make_step(pieces, seed)
    heads, dtype = contents.heads, contents.q.dtype
    attention = BACKENDS[backend](heads.dim, heads.query // heads.kv, dtype)
    batch = prepare(plan, tables, device, attention)
    pool = KVCache.allocate(
        LAYERS, heads.kv, heads.dim, num_blocks, dtype, CPU, keys_in_columns=attention.keys_in_columns
    )
    pool.rows.normal_(generator=torch.Generator().manual_seed(9))  # stale rows of others, finite
    for index, piece in enumerate(pieces):
        columns = torch.arange(piece.start)
        slots = torch.from_numpy(tables[plan.batch_indices[index]])[columns // 16] * 16 + columns % 16
        pool.write(LAYER, slots, *contents.old[index])
    padding = batch.input_ids.numel() - contents.q.shape[0]
    q, k, v = (torch.cat([x, x.new_zeros(padding, *x.shape[1:])]) for x in (contents.q, contents.k, contents.v))
    if scoring.sinks is not None:
        scoring = replace(scoring, sinks=scoring.sinks.to(device))
    there = replace(pool, rows=pool.rows.to(device))
    out = attention(LAYER, q.to(device), k.to(device), v.to(device), scoring, there, batch).cpu()
    assert out.shape == q.shape and out.dtype == q.dtype and not out[contents.q.shape[0] :].isnan().any()
    return out[: contents.q.shape[0]]


def by_definition(pieces: list[Piece], contents: Contents, scoring: AttentionParams) -> Tensor:
    """What attend() gives, in float64, query by query."""
    plan, tables, _ = make_step(pieces)
    out = torch.zeros(contents.q.shape, dtype=torch.float64)
    per_head = contents.heads.query // contents.heads.kv
    for index, row in enumerate(rows_of(pieces, plan, tables)):
        visible = row.visible if scoring.window is None else row.visible[-scoring.window :]  # by position
        keys, values = (x.double() for x in contents.columns(pieces, row.piece, visible))
        for head in range(contents.heads.query):
            scores = keys[:, head // per_head] @ contents.q[index, head].double() * scoring.scale
            if scoring.softcap is not None:
                scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
            if scoring.sinks is not None:
                scores = torch.cat([scores, scoring.sinks[head : head + 1].double()])
            out[index, head] = torch.softmax(scores, 0)[: keys.shape[0]] @ values[:, head // per_head]
    return out


def random_pieces(seed: int) -> list[Piece]:
    rng = random.Random(seed)
    return [
        Piece(
            rng.choice([0, 3, 16, 40, 70]),
            rng.choice([1, 1, 2, 19]),
            random_parents(rng, rng.choice([0, 1, 5, 9])),
        )
        for _ in range(5)
    ]


SCORINGS = {
    "plain": AttentionParams(0.3),
    "window": AttentionParams(0.3, window=7),
    "window of one": AttentionParams(0.3, window=1),
    "softcap": AttentionParams(0.5, softcap=2.0),
    "sinks": AttentionParams(0.3, sinks=torch.tensor([0.5, -1.0, 3.0, 20.0, -50.0, 0.0])),
    "all": AttentionParams(0.4, window=5, softcap=3.0, sinks=torch.linspace(-2, 2, 6)),
}
