"""Drafter: after a step, lets the heads guess what follows for the sequences that go on.

Owns when heads run and what they read. Not here: the heads (medusa/heads/medusa_heads.py), guesses and trees
(medusa/trees/draft.py, medusa/trees/tree.py), how many are verified (medusa/trees/budget.py), what is drafted for beams
(beam_drafter.py).
"""

import time
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from medusa_dist.config import Paths
from medusa_dist.engine.beam.beam_drafter import BeamDrafter
from medusa_dist.engine.beam.group import BeamGroup, beam_groups
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.heads.sequential import Growth, SequentialHeads, draft_paths
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K, guess
from medusa_dist.medusa.trees.tree import Candidates
from medusa_dist.ops.noise import NoiseColumns, gumbel


class Drafter:
    """Rank 0's heads. embedding: the base's full input embedding [V, H], for heads that read the emitted token.

    static: the only tree that will be verified, if there is one: heads that draft path by path follow just its paths.
    """

    def __init__(
        self,
        heads: MedusaHeads | SequentialHeads,
        embedding: Tensor | None,
        vocab_size: int,
        static: Paths | None = None,
    ) -> None:
        self._heads = heads
        self._embedding = embedding
        ids = heads.token_ids
        self._token_ids = torch.arange(vocab_size, device=heads.device) if ids is None else ids
        self._columns = NoiseColumns.of_ids(self._token_ids)
        self._growth = Growth(self.num_heads, self.num_ranks, static)
        self._beams = None if static else BeamDrafter(heads, embedding, self._token_ids, self.num_ranks)

    @property
    def num_heads(self) -> int:
        """How deep a tree can be."""
        return self._heads.num_heads

    @property
    def num_ranks(self) -> int:
        """How many guesses each head offers."""
        return min(DRAFT_TOP_K, self._token_ids.numel())

    @torch.inference_mode()
    def draft(self, verdicts: Seq[StepResult], scores: Scores) -> None:
        """Set `candidates` of the sequences that go on and want speculation; the rest keep none."""
        going = [v for v in verdicts if v.sequence.finish_reason is None and v.sequence.request.params.speculation]
        if self._beams is not None:
            self._draft_beams(self._beams, [v for v in going if isinstance(v.sequence.group, BeamGroup)], scores)
            going = [v for v in going if not isinstance(v.sequence.group, BeamGroup)]
        if not going:
            return
        device = self._token_ids.device
        hidden = scores.hidden[torch.tensor([v.last_row for v in going], device=device)]
        roots = torch.tensor([v.sequence.tokens[-1] for v in going], device=device)
        temperatures = torch.tensor(
            [v.sequence.request.params.temperature for v in going], dtype=torch.float32, device=device
        )
        noise = self._noise(going, temperatures) if bool((temperatures > 0).any()) else None
        made = self._guess(hidden, roots, (temperatures, noise), self._growth)
        for verdict, candidates in zip(going, made, strict=True):
            verdict.sequence.candidates = candidates

    def _draft_beams(self, drafter: BeamDrafter, verdicts: Seq[StepResult], scores: Scores) -> None:
        """verdicts: of all beams of each group among them."""
        rows = {v.sequence: v.last_row for v in verdicts}
        groups = beam_groups(v.sequence for v in verdicts)
        drafter.draft(groups, [[scores.hidden[rows[beam]] for beam in group.beams] for group in groups])

    def _guess(
        self, hidden: Tensor, roots: Tensor, chance: tuple[Tensor, Tensor | None], growth: Growth
    ) -> list[Candidates]:
        """hidden [B, I], as in Scores; roots [B]; chance: temperatures [B] and noise [B, K, D] -> their candidates."""
        embedding = None if self._embedding is None else self._embedding[roots]
        if isinstance(self._heads, MedusaHeads):
            columns, confidences = guess(self._heads(hidden, embedding), *chance)
            tokens = self._token_ids[columns].cpu().numpy()
            return [Candidates(ids, q) for ids, q in zip(tokens, confidences.cpu().numpy(), strict=True)]
        assert embedding is not None
        lists = draft_paths(self._heads, hidden, embedding, self._embed, chance, growth)
        tokens, follows = (x.cpu().numpy() for x in (self._token_ids[lists.columns], lists.follows))
        return [
            Candidates(ids, q, then)
            for ids, q, then in zip(tokens, lists.confidences.cpu().numpy(), follows, strict=True)
        ]

    def _embed(self, columns: Tensor) -> Tensor:
        """Columns of the draft vocabulary [N] -> their embeddings [N, H]."""
        assert self._embedding is not None
        return self._embedding[self._token_ids[columns]]

    def _noise(self, going: list[StepResult], temperatures: Tensor) -> Tensor:
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

    def measure(self, num_sequences: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Seconds of greedy drafting for so many sequences, the median of a few rounds."""
        device = self._token_ids.device
        hidden = torch.zeros(num_sequences, self._heads.description.input_width, dtype=dtype, device=device)
        roots = torch.zeros(num_sequences, dtype=torch.int64, device=device)
        whole = Growth(self.num_heads, self.num_ranks, least=0.0)  # zeros are believed nowhere, real states are
        times = []
        with torch.inference_mode():
            for _ in range(num_rounds):
                begin = time.perf_counter()
                self._guess(hidden, roots, (roots.float(), None), whole)  # ends on the host, so it waits for the device
                times.append(time.perf_counter() - begin)
        return sorted(times)[num_rounds // 2]
