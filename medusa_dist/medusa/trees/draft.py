"""From the heads' logits to candidates: each head's best guesses and their confidences.

Owns the drafting rule. Pure. Not here: the tree built from candidates (tree.py), the heads
(medusa/heads/medusa_heads.py).
Drafting uses the noise that verification will use: the guesses of head k are the top R of log q_k / T + G(seed,
position + k, .), so head and base model pick the same token whenever their distributions agree there.
Shapes: B sequences, K heads, D tokens the heads know, R guesses per head.
"""

import torch
from torch import Tensor

DRAFT_TOP_K = 10  # guesses per head that a tree can use; published Medusa trees use up to 10


def guess(logits: Tensor, temperatures: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Best columns of each head and their confidences: [B, K, R] int64 and [B, K, R] float32.

    logits: [B, K, D]. temperatures: [B], 0 = greedy. noise: [B, K, D], G at the positions the heads guess for; required
    if any temperature is above 0, ignored for greedy rows.
    Confidence: for greedy rows, the head's own probability of the token; for sampled rows, the softmax of the perturbed
    scores among the R best. Head and base model share noise of scale 1, so their choices differ only through the error
    of the head's logits, and a gap between perturbed scores is as informative as a gap between logits.
    """
    num_guesses = min(DRAFT_TOP_K, logits.shape[-1])
    scores = logits
    if noise is not None:
        sampled = (temperatures > 0)[:, None, None]
        divisor = torch.where(temperatures > 0, temperatures, torch.ones_like(temperatures))[:, None, None]
        scores = torch.where(sampled, logits / divisor + noise, logits)
    best, columns = scores.topk(num_guesses, dim=-1)
    log_q = torch.log_softmax(logits, dim=-1).gather(-1, columns)
    confidences = log_q.exp()
    if noise is not None:
        confidences = torch.where(sampled, torch.softmax(best, dim=-1), confidences)
    return columns, confidences
