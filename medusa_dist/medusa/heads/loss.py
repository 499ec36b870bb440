"""Training losses of the heads.

Owns the losses. Pure. Not here: the heads (trainable.py), data and loop (training/).
A head's target is the base model's own distribution at the position it guesses for, given by its M most likely tokens;
tokens outside the heads' vocabulary are not targets. Head k has weight decay^(k-1): a later head's guess counts only if
all before it were right (Medusa's 0.8, arXiv 2401.10774).
Shapes: N positions, D tokens the heads know, M tokens kept of the base model's distribution.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["kl", "ce", "lk"]
OUTSIDE = -1  # column of a token that the heads do not know
_LEAST = 1e-6


@dataclass(frozen=True)
class Targets:
    """columns: [N, M] of the draft vocabulary, or OUTSIDE. chances: [N, M], base model. labels: [N], true columns."""

    columns: Tensor
    chances: Tensor
    labels: Tensor


def head_loss(logits: Tensor, targets: Targets, kind: Kind) -> Tensor:
    """Mean loss of one head, float32. logits: [N, D]; N = 0 gives 0, with gradient 0.

    kl: cross entropy to the base model's probabilities, which differs from the Kullback-Leibler divergence by a
    constant. ce: cross entropy to the emitted token. lk: half kl, half -log of the acceptance probability of sampled
    tokens, sum min(p, q) (arXiv 2602.23881).
    """
    if not logits.shape[0]:
        return logits.sum()
    log_q = F.log_softmax(logits.float(), dim=-1)
    if kind == "ce":
        known = targets.labels != OUTSIDE
        return -(log_q.gather(1, targets.labels.clamp_min(0)[:, None])[:, 0] * known).mean()
    p = targets.chances * (targets.columns != OUTSIDE)
    log_q = log_q.gather(1, targets.columns.clamp_min(0))
    kl = -(p * log_q).sum(dim=-1).mean()
    if kind == "kl":
        return kl
    accepted = torch.minimum(p, log_q.exp()).sum(dim=-1).clamp_min(_LEAST)
    # Positions where the heads know none of the likely tokens contribute nothing.
    return 0.5 * kl - 0.5 * (accepted.log() * (p.sum(dim=-1) > _LEAST)).mean()


def total_loss(losses: list[Tensor], decay: float) -> Tensor:
    """sum_k decay^(k-1) loss_k."""
    return torch.stack([decay**k * loss for k, loss in enumerate(losses)]).sum()
