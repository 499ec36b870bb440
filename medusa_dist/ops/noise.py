"""Counter-based Gumbel noise, version 1, shared by drafting and verification.

Owns Philox4x32-10 on int64 tensors, and the mapping from (seed, position, token) to one Gumbel variate. Not here: the
same Philox compiled for CPUs (noise_kernel.py), how a token is selected with the noise (sampling.py).
Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

The token at an absolute position is argmax over v of log p(v) + G(seed, position, v): an exact sample from p (the
Gumbel-max trick) that depends only on the logits and the seed, not on trees, batches, ranks or restarts. Drafting with
the same noise makes head and base model agree whenever their distributions do (drafter-invariant sampling, arXiv
2408.07978).
Shapes: R rows, V columns (tokens).
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.cpu.numba_cache import first_calls
from medusa_dist.ops.noise_kernel import philox_words

NOISE_VERSION = 1

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LARGEST_X = 1.0 - 2.0**-24  # below 1 in float32: at 1 the noise is -inf, and a lone candidate would have no maximum
_ROWS_AT_ONCE = 2  # rows are independent, and two fit in a core's cache: 29 ms for 32 rows, where 16 at once take 50


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10. All tensors int64 holding 32-bit words, broadcastable; returns the four output words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_index in range(_ROUNDS):
        if round_index:
            k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
        # A 32 x 32 bit product fits in 64 bits; int64 keeps all of them, and masking undoes the sign of the shift.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
    return c0, c1, c2, c3


@dataclass(frozen=True)
class NoiseColumns:
    """The tokens that need noise: the Philox blocks that hold them (four tokens per block), and their indices."""

    blocks: Tensor  # [K] int64
    places: Tensor | slice  # V indices into the flattened [4 * K] words

    @classmethod
    def of_range(cls, start: int, stop: int, device: torch.device | str = "cpu") -> "NoiseColumns":
        """Tokens start <= v < stop."""
        first = start // 4
        blocks = torch.arange(first, (stop + 3) // 4, dtype=torch.int64, device=device)
        return cls(blocks, slice(start - 4 * first, stop - 4 * first))

    @classmethod
    def of_ids(cls, ids: Tensor) -> "NoiseColumns":
        """Any tokens, for example a reduced draft vocabulary; ids is [V] int64."""
        blocks, inverse = torch.unique(ids // 4, return_inverse=True)
        return cls(blocks, inverse * 4 + ids % 4)


def gumbel(seeds: Tensor, positions: Tensor, columns: NoiseColumns) -> Tensor:
    """G(seed, position, token): [R, V] float32.

    seeds, positions: [R] int64; position is the absolute index of the token being selected.
    x = (h + 1/2) / 2^32 from the 32-bit word h, G = -log(-log1p(-x)): large noise comes from small x, which float32
    resolves, so rounding cannot produce an infinite score (with -log(-log x), x rounding to 1 would).
    """
    rows = [
        _gumbel_rows(seeds[i : i + _ROWS_AT_ONCE], positions[i : i + _ROWS_AT_ONCE], columns)
        for i in range(0, seeds.shape[0], _ROWS_AT_ONCE)
    ]
    if not rows:
        width = columns.blocks.new_empty(columns.blocks.numel() * 4)[columns.places].numel()
        return torch.empty(0, width, dtype=torch.float32, device=seeds.device)
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _gumbel_rows(seeds: Tensor, positions: Tensor, columns: NoiseColumns) -> Tensor:
    words = _words_compiled if seeds.device.type == "cpu" else _words
    x = words(seeds, positions, columns.blocks)[:, columns.places].contiguous()
    x.add_(0.5).mul_(2.0**-32).clamp_(max=_LARGEST_X)
    return x.neg_().log1p_().neg_().log_().neg_()


def _words(seeds: Tensor, positions: Tensor, blocks: Tensor) -> Tensor:
    """[R, 4 * K] float32: each row's words, rounded."""
    seeds, positions = seeds[:, None], positions[:, None]
    counter = (blocks[None, :], positions & _MASK, (positions >> 32) & _MASK, torch.zeros_like(seeds))
    words = philox(counter, (seeds & _MASK, (seeds >> 32) & _MASK))
    return torch.stack(words, dim=-1).flatten(1).to(torch.float32)


@cache
def compile_noise() -> None:
    """Compile the loop (1 s) or load it from disk; called at start-up, so that no step waits for it."""
    one = torch.zeros(1, dtype=torch.int64)
    with first_calls(philox_words), suppress(OSError):  # a full disk: the compiled code is still in memory
        _words_compiled(one, one, one)


def _words_compiled(seeds: Tensor, positions: Tensor, blocks: Tensor) -> Tensor:
    """The same on a CPU."""
    words = torch.empty(seeds.numel(), 4 * blocks.numel(), dtype=torch.float32)
    arrays = (x.contiguous().numpy().view(np.uint64) for x in (seeds, positions, blocks))
    philox_words(*arrays, words.numpy())
    return words
