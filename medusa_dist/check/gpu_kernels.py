"""Compiles all GPU kernels for chips that need not be there: `python -m medusa_dist.check.gpu_kernels`.

Owns which launches stand for all, the chips' limits, and the table. Not here: the kernels and how one is compiled
(ops/gpu/).
The launches are those of the real code, recorded on CPU tensors.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch

from medusa_dist.ops.attention.backend import Ancestry, AttentionParams, BatchLayout, RotaryAngles
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.gpu.choice_kernel import choose
from medusa_dist.ops.gpu.compiled import KernelResources, compile_for
from medusa_dist.ops.gpu.expert_kernel import ExpertRoutes, expert_product
from medusa_dist.ops.gpu.language import HAS_TRITON, interprets
from medusa_dist.ops.gpu.launch import KernelLaunch, recorded
from medusa_dist.ops.gpu.layer_kernels import add_rms_norm, rms_norm, silu_mul

# Shared memory that one block of threads may take, in bytes (CUDA C++ Programming Guide, technical specifications).
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
HEAD_DIMS = (64, 80, 128, 256)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CPU = torch.device("cpu")


def attention_launches(head_dim: int, dtype: torch.dtype, *, plain: bool) -> list[KernelLaunch]:
    """Launches of one layer of attention: 32 query heads, 8 KV heads, a tree of three nodes after 4,000 tokens.

    plain: without rotary embedding, window, softcap and sinks; else with all of them.
    """
    rows, heads, kv_heads = 4, 32, 8
    backend = TritonBackend(head_dim, heads // kv_heads, dtype)
    computed, new, drafts = (np.array([count]) for count in (4000, 1, 3))
    tables, trees = np.arange(1, 257)[None], [Ancestry(np.array([-1, 0, 0]))]
    tiles = backend.metadata(BatchLayout(computed, new, drafts, tables, trees, rows), _CPU)
    ids, none = torch.zeros(rows, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    batch = ForwardBatch(ids, ids, ids, none, none, ids, none, tiles)
    queries, keys = (torch.zeros(rows, count, head_dim, dtype=dtype) for count in (heads, kv_heads))
    angles = RotaryAngles(*(torch.zeros(rows, head_dim, dtype=dtype) for _ in range(2)))
    params = AttentionParams(0.1) if plain else AttentionParams(0.1, 1024, 30.0, torch.zeros(heads), angles)
    cache = KVCache.allocate(1, kv_heads, head_dim, 257, dtype, _CPU)
    with recorded() as launches:
        backend(0, queries, keys, keys, params, cache, batch)
    return launches


def other_launches(dtype: torch.dtype, hidden_size: int = 4096) -> list[KernelLaunch]:
    """Launches of everything else: norms in both forms, SiLU times up, experts, the choice of tokens."""
    x, weight = torch.zeros(4, hidden_size, dtype=dtype), torch.zeros(hidden_size, dtype=dtype)
    numbers = torch.zeros(4, dtype=torch.int64)
    with recorded() as launches:
        for adds_one in (False, True):
            rms_norm(x, weight, 1e-6, adds_one)
            add_rms_norm(x, x, weight, 1e-6, adds_one)
        silu_mul(x)
        for rows in (4, 512):  # tiles of few and of many pairs
            pairs = torch.zeros(rows, 2, dtype=torch.int64)
            expert_product(x.new_zeros(rows, hidden_size), x.new_zeros(8, 64, hidden_size), ExpertRoutes.of(pairs, 8))
        choose(torch.zeros(4, 128256, dtype=dtype), numbers, numbers, torch.zeros(4), 0, 128256)
    return launches


def all_launches() -> Iterator[tuple[str, KernelLaunch]]:
    """(what it is for, launch) of every kernel with every size that ships."""
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        for head_dim in HEAD_DIMS:
            for plain in (True, False):
                words = f"{short}, heads of {head_dim}" + ("" if plain else ", all options")
                yield from ((words, launch) for launch in attention_launches(head_dim, dtype, plain=plain))
        yield from ((f"{short}, hidden size 4096", launch) for launch in other_launches(dtype))


def line(words: str, found: list[KernelResources]) -> str:
    """One line of the table in docs/gpu.md: what a kernel takes of each chip."""
    cells = [found[0].name, words, str(found[0].num_warps)]
    cells.append(", ".join(str(one.registers) for one in found))
    cells.append(", ".join(str(one.local_bytes) for one in found))
    cells.append(", ".join(f"{one.shared_bytes / 1024:.1f}" for one in found))
    products = ["+".join(one.products) for one in found]
    cells.append(", ".join(products) if any(products) else "-")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, or one JSON object per line."""
    parser = argparse.ArgumentParser(description="compile the GPU kernels and print what they take")
    parser.add_argument("--chips", default="80,90,100", help="compute capabilities, such as 80,90,100")
    parser.add_argument("--only", default="", help="only kernels whose name or purpose has this word")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    options = parser.parse_args()
    if not HAS_TRITON or interprets():
        parser.error("needs the package triton (pip install 'medusa-dist[gpu]'), and no TRITON_INTERPRET")
    for words, launch in all_launches():
        if options.only not in f"{launch.kernel.__name__} {words}":
            continue
        found = [compile_for(launch, int(chip)) for chip in options.chips.split(",")]
        rows = [json.dumps({"for": words, **asdict(one)}) for one in found] if options.json else [line(words, found)]
        print(*rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
