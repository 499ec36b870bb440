"""Drafter: after a step, lets the heads guess what follows for the sequences that go on.

Owns when heads run and what they read. Not here: the heads (medusa/heads.py), guesses and trees (medusa/draft.py,
medusa/tree.py), how many are verified (medusa/budget.py).
"""

import time
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from medusa_dist.engine.verdict import Verdict
from medusa_dist.engine.worker import Scores
from medusa_dist.medusa.draft import NUM_RANKS, guess
from medusa_dist.medusa.heads import MedusaHeads
from medusa_dist.medusa.tree import Candidates
from medusa_dist.ops.noise import NoiseColumns, gumbel


class Drafter:
    """Rank 0's heads. embedding: the base's full input embedding [V, H], for heads that read the emitted token."""

    def __init__(self, heads: MedusaHeads, embedding: Tensor | None, vocab_size: int) -> None:
        self._heads = heads
        self._embedding = embedding
        ids = heads.token_ids
        self._token_ids = torch.arange(vocab_size, device=heads.device) if ids is None else ids
        self._columns = NoiseColumns.of_ids(self._token_ids)

    @property
    def num_heads(self) -> int:
        """How deep a tree can be."""
        return self._heads.num_heads

    @property
    def num_ranks(self) -> int:
        """How many guesses each head offers."""
        return min(NUM_RANKS, self._token_ids.numel())

    @torch.inference_mode()
    def draft(self, verdicts: Seq[Verdict], scores: Scores) -> None:
        """Set `candidates` of the sequences that go on and want speculation; the rest keep none."""
        going = [v for v in verdicts if v.sequence.finish_reason is None and v.sequence.request.params.speculation]
        if not going:
            return
        device = self._token_ids.device
        hidden = scores.hidden[torch.tensor([v.last_row for v in going], device=device)]
        roots = torch.tensor([v.sequence.tokens[-1] for v in going], device=device)
        embedding = None if self._embedding is None else self._embedding[roots]
        logits = self._heads(hidden, embedding)
        temperatures = torch.tensor(
            [v.sequence.request.params.temperature for v in going], dtype=torch.float32, device=device
        )
        noise = self._noise(going, temperatures) if bool((temperatures > 0).any()) else None
        columns, confidences = guess(logits, temperatures, noise)
        tokens = self._token_ids[columns].cpu().numpy()
        for verdict, ids, chances in zip(going, tokens, confidences.cpu().numpy(), strict=True):
            verdict.sequence.candidates = Candidates(ids, chances)

    def _noise(self, going: list[Verdict], temperatures: Tensor) -> Tensor:
        """G at the positions the heads guess for: [B, K, D]; zero for greedy sequences."""
        heads = range(self.num_heads)
        # The root stands at n - 1; head k guesses the token at n - 1 + k.
        pairs = [
            (v.sequence.request.seed, len(v.sequence.tokens) + k)
            for v in going
            if v.sequence.request.params.temperature > 0
            for k in heads
        ]
        keys = torch.tensor(pairs, dtype=torch.int64, device=self._token_ids.device)
        noise = torch.zeros(len(going), self.num_heads, self._token_ids.numel(), device=self._token_ids.device)
        made = gumbel(keys[:, 0], keys[:, 1], self._columns)
        noise[temperatures > 0] = made.view(-1, self.num_heads, self._token_ids.numel())
        return noise

    def measure(self, num_sequences: int, hidden_size: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Seconds of greedy drafting for so many sequences, the median of a few rounds."""
        hidden = torch.zeros(num_sequences, hidden_size, dtype=dtype, device=self._token_ids.device)
        embedding = None if self._embedding is None else self._embedding[:1].expand_as(hidden)
        times = []
        with torch.inference_mode():
            for _ in range(num_rounds):
                begin = time.perf_counter()
                columns, _ = guess(
                    self._heads(hidden, embedding), torch.zeros(num_sequences, device=hidden.device), None
                )
                columns.cpu()  # waits for the device
                times.append(time.perf_counter() - begin)
        return sorted(times)[num_rounds // 2]
