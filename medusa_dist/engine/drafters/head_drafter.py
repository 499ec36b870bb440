"""HeadDrafter: runs the heads after a step to draft tokens for the sequences that continue.

Owns when the heads run and what they read. Not here: the heads (medusa/heads/), guesses and trees (medusa/trees/), how
many drafts are verified (engine/spec/tree_policy.py), drafts for beams (beam/beam_drafter.py).
"""

import time
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from medusa_dist.config import Paths
from medusa_dist.engine.beam.beam_drafter import BeamDrafter
from medusa_dist.engine.beam.group import beam_groups
from medusa_dist.engine.drafters.draft_noise import draft_chance
from medusa_dist.engine.drafters.prefix_reader import PrefixReader
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.heads.prefix_layer import PrefixLayer
from medusa_dist.medusa.heads.sequential import SequentialHeads, draft_paths
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K, guess
from medusa_dist.medusa.trees.levels import Growth
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.noise import NoiseColumns


class HeadDrafter:
    """Rank 0's heads. embedding: the base model's full input embedding [V, H], for heads that read the emitted token.

    static: the only tree that will be verified, if there is one; sequential heads then draft only its paths. prefix:
    the layer whose output they start from, if they have one.
    """

    def __init__(
        self,
        heads: MedusaHeads | SequentialHeads,
        embedding: Tensor | None,
        vocab_size: int,
        static: Paths | None = None,
        prefix: PrefixLayer | None = None,
    ) -> None:
        self._prefix = prefix
        self._heads = heads
        self._embedding = embedding
        ids = heads.token_ids
        self._token_ids = torch.arange(vocab_size, device=heads.device) if ids is None else ids
        self._columns = NoiseColumns.of_ids(self._token_ids)
        self._growth = Growth(self.max_depth, self.top_k, static)
        self._beams = None if static else BeamDrafter(heads, embedding, self._token_ids, self.top_k)

    @property
    def max_depth(self) -> int:
        """Maximum depth of a tree."""
        return self._heads.num_heads

    @property
    def top_k(self) -> int:
        """Number of guesses per head."""
        return min(DRAFT_TOP_K, self._token_ids.numel())

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of a block of the prefix layer's keys and values; 0 without one."""
        return 0 if self._prefix is None else self._prefix.kv_block_bytes

    def follow_rows(self, num_blocks: int, attention: AttentionBackend) -> PrefixReader | None:
        """What runs the prefix layer over all rows; None without one."""
        return None if self._prefix is None else PrefixReader(self._prefix, attention, num_blocks)

    @torch.inference_mode()
    def draft(self, results: Seq[StepResult], scores: Scores) -> list[Candidates | None]:
        """Candidates for the sequences that continue and want speculation, None for the others."""
        active = [r for r in results if r.sequence.finish_reason is None and r.sequence.request.params.speculation]
        made: dict[Sequence, Candidates] = {}
        if self._beams is not None:
            beams = [r for r in active if r.sequence.is_beam]
            made |= self._draft_beams(self._beams, beams, scores)
            active = [r for r in active if not r.sequence.is_beam]
        if active:
            made |= zip((r.sequence for r in active), self._draft_single(active, scores), strict=True)
        return [made.get(r.sequence) for r in results]

    def _draft_single(self, results: Seq[StepResult], scores: Scores) -> list[Candidates]:
        device = self._token_ids.device
        hidden = scores.hidden[torch.tensor([r.last_row for r in results], device=device)]
        roots = torch.tensor([r.sequence.tokens[-1] for r in results], device=device)
        chance = draft_chance(results, self.max_depth, self._token_ids.numel(), self._columns, device)
        return self._guess(hidden, roots, chance, self._growth)

    def _draft_beams(
        self, drafter: BeamDrafter, results: Seq[StepResult], scores: Scores
    ) -> dict[Sequence, Candidates]:
        """results: includes those of all beams of each group."""
        rows = {r.sequence: r.last_row for r in results}
        groups = beam_groups(rows)
        return drafter.draft(groups, [[scores.hidden[rows[beam]] for beam in group.beams] for group in groups])

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

    def measure(self, num_sequences: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Median time in seconds of a few rounds of greedy drafting for this many sequences."""
        device = self._token_ids.device
        hidden = torch.zeros(num_sequences, self._heads.description.read_width, dtype=dtype, device=device)
        roots = torch.zeros(num_sequences, dtype=torch.int64, device=device)
        full_growth = Growth(self.max_depth, self.top_k, least=0.0)  # unlike real states, zeros reach no threshold
        times = []
        with torch.inference_mode():
            for _ in range(num_rounds):
                begin = time.perf_counter()
                self._guess(
                    hidden, roots, (roots.float(), None), full_growth
                )  # ends on the host, so it waits for the device
                times.append(time.perf_counter() - begin)
        return sorted(times)[num_rounds // 2]
