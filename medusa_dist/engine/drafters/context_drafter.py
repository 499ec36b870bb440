"""ContextDrafter: drafts with heads that read the whole text, such as EAGLE-3.

Owns when the layer runs, and for how many sequences at once. Not here: the layer and its expansion
(medusa/eagle3/layer.py, medusa/eagle3/expansion.py), its keys and values (context_cache.py), how many drafts are
verified (engine/spec/tree_policy.py).
Beams are not drafted for: they are decoded without speculation.
"""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from medusa_dist.config import Paths
from medusa_dist.engine.drafters.context_cache import ContextCache
from medusa_dist.engine.drafters.draft_noise import draft_chance
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.eagle3.expansion import Context, draft_levels, room_for
from medusa_dist.medusa.eagle3.layer import Eagle3, kv_block_bytes
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K
from medusa_dist.medusa.trees.levels import FOLLOWED, Growth
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.noise import NoiseColumns

FOLLOWED_ON_GPU = (8,)  # guesses extended at each depth: a GPU reads the layer's weights once for all of them
_MEASURED_CONTEXT = 128  # tokens before the roots


class ContextDrafter:
    """Rank 0's heads. embedding: [V, H], that they read. static: the only tree that will be verified, if there is one.

    Call follow_rows before the first draft.
    """

    def __init__(self, heads: Eagle3, embedding: Tensor, vocab_size: int, static: Paths | None = None) -> None:
        self._heads, self._embedding = heads, embedding
        ids = heads.token_ids
        self._token_ids = torch.arange(vocab_size, device=heads.device) if ids is None else ids
        self._columns = NoiseColumns.of_ids(self._token_ids)
        followed = FOLLOWED if heads.device.type == "cpu" else FOLLOWED_ON_GPU
        self._growth = Growth(self.max_depth, self.top_k, static, followed=followed)
        self._all_levels = Growth(self.max_depth, self.top_k, least=0.0, followed=followed)
        self._context: ContextCache | None = None

    @property
    def max_depth(self) -> int:
        """Maximum depth of a tree."""
        return self._heads.num_levels

    @property
    def top_k(self) -> int:
        """Number of guesses per list."""
        return min(DRAFT_TOP_K, self._token_ids.numel())

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of a KV block of the draft layer, and of its gathered copy while drafting."""
        return kv_block_bytes(self._heads.config, self._heads.dtype)

    def follow_rows(self, num_blocks: int, _attention: AttentionBackend) -> ContextCache:
        """Allocate keys and values for a pool of num_blocks blocks; the worker hands all rows to what is returned."""
        self._context = None  # frees the one before
        self._context = ContextCache(self._heads, self._embedding, num_blocks)
        return self._context

    @torch.inference_mode()
    def draft(self, results: Seq[StepResult], scores: Scores) -> list[Candidates | None]:
        """Candidates for the sequences that continue and want speculation, None for the others."""
        active = [
            r
            for r in results
            if r.sequence.finish_reason is None and r.sequence.request.params.speculation and not r.sequence.is_beam
        ]
        made: dict[int, Candidates] = {}
        for group in self._groups(active):
            for result, candidates in zip(group, self._draft_group(group, scores), strict=True):
                made[id(result)] = candidates
        return [made.get(id(r)) for r in results]

    def _groups(self, results: Seq[StepResult]) -> Iterator[list[StepResult]]:
        """Results of similar lengths, so that the gathered context of a group is no larger than the whole cache."""
        assert self._context is not None, "follow_rows was not called"
        most = self._context.cache.rows.shape[3]
        group: list[StepResult] = []
        for result in sorted(results, key=lambda r: len(r.sequence.tokens)):
            if group and (len(group) + 1) * len(result.sequence.tokens) > most:
                yield group
                group = []
            group.append(result)
        if group:
            yield group

    def _draft_group(self, results: list[StepResult], scores: Scores) -> list[Candidates]:
        assert self._context is not None
        device = self._heads.device
        sequences = [r.sequence for r in results]
        states = scores.hidden[torch.tensor([r.last_row for r in results], device=device)]
        roots = torch.tensor([s.tokens[-1] for s in sequences], device=device)
        positions = torch.tensor([len(s.tokens) - 1 for s in sequences], device=device)
        context = self._context.gather(sequences, room_for(self._growth))
        chance = draft_chance(results, self.max_depth, self._token_ids.numel(), self._columns, device)
        return self._guess((self._embedding[roots], states, positions), context, chance, self._growth)

    def _guess(
        self,
        start: tuple[Tensor, Tensor, Tensor],
        context: Context,
        chance: tuple[Tensor, Tensor | None],
        growth: Growth,
    ) -> list[Candidates]:
        lists = draft_levels(self._heads, start, self._embed, context, chance, growth)
        tokens, follows = (x.cpu().numpy() for x in (self._token_ids[lists.columns], lists.follows))
        confidences = lists.confidences.cpu().numpy()
        return [Candidates(ids, q, then) for ids, q, then in zip(tokens, confidences, follows, strict=True)]

    def _embed(self, columns: Tensor) -> Tensor:
        """Columns of the draft vocabulary [N] -> their embeddings [N, H]."""
        return self._embedding[self._token_ids[columns]]

    def measure(self, num_sequences: int, dtype: torch.dtype, num_rounds: int = 5) -> float:
        """Median time in seconds of a few rounds of greedy drafting for this many sequences, all levels."""
        heads, config = self._heads, self._heads.config
        room, device = room_for(self._all_levels), heads.device
        shape = (num_sequences, config.num_kv_heads, _MEASURED_CONTEXT + room, config.head_dim)
        zeros = torch.zeros(num_sequences, dtype=torch.int64, device=device)
        times = []
        with torch.inference_mode():
            for _ in range(num_rounds):
                begin = time.perf_counter()
                keys, values = (torch.zeros(shape, dtype=heads.dtype, device=device) for _ in range(2))
                columns = torch.arange(_MEASURED_CONTEXT, device=device).expand(num_sequences, -1)
                context = Context(keys, values, columns, torch.ones_like(columns, dtype=torch.bool))
                states = torch.zeros(num_sequences, config.hidden_size, dtype=dtype, device=device)
                start = self._embedding[zeros], states, zeros + _MEASURED_CONTEXT
                self._guess(start, context, (zeros.float(), None), self._all_levels)  # ends on the host
                times.append(time.perf_counter() - begin)
        return sorted(times)[num_rounds // 2]
