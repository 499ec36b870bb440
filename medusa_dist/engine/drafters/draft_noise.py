"""The noise that drafts share with verification, at the positions that are drafted for.

Owns which positions those are. Not here: the noise itself (ops/noise.py), what a drafter does with it
(medusa/trees/draft.py).
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.ops.noise import NoiseColumns, gumbel


def draft_chance(
    results: Seq[StepResult], num_levels: int, num_known: int, columns: NoiseColumns, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Temperatures [B], and G at the positions of the next num_levels tokens: [B, K, D], zero for greedy sequences;
    None if all are greedy. columns: of the num_known tokens that can be drafted."""
    listed = [r.sequence.request.params.temperature for r in results]
    temperatures = torch.tensor(listed, dtype=torch.float32, device=device)
    # The root is at position n - 1; level k guesses the token at n - 1 + k.
    pairs = [
        (r.sequence.request.seed, len(r.sequence.tokens) + level)
        for r, temperature in zip(results, listed, strict=True)
        if temperature > 0
        for level in range(num_levels)
    ]
    if not pairs:
        return temperatures, None
    keys = torch.tensor(pairs, dtype=torch.int64, device=device)
    noise = torch.zeros(len(results), num_levels, num_known, device=device)
    noise[temperatures > 0] = gumbel(keys[:, 0], keys[:, 1], columns).view(-1, num_levels, num_known)
    return temperatures, noise
