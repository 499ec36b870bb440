"""Inputs of typical acceptance: probabilities of draft tokens, and the entropy of the model.

Owns the numbers. Not here: the rule (medusa/trees/accept.py), the adjustment of logits (ops/sampling.py).
"""

import torch

from medusa_dist.medusa.trees.accept import Weights
from medusa_dist.sampling_params import SamplingParams


def typical_bounds(params: SamplingParams) -> tuple[float, float] | None:
    """(epsilon, delta) of a request with typical acceptance, else None."""
    return (params.typical_epsilon, params.typical_delta) if params.acceptance == "typical" else None


def weights_of(rows: list[torch.Tensor], drafted: list[list[int]]) -> list[Weights]:
    """rows: adjusted log-scores [V], one per node (filtered tokens -inf). drafted: the draft tokens after each node."""
    log_p = torch.log_softmax(torch.stack(rows), dim=-1)
    p = log_p.exp()
    # 0 * log 0 counts as 0.
    entropies = -(p * log_p.masked_fill(p == 0.0, 0.0)).sum(-1)
    return [
        Weights(dict(zip(tokens, row[tokens].tolist(), strict=True)), entropy)
        for row, tokens, entropy in zip(log_p, drafted, entropies.tolist(), strict=True)
    ]
