"""BeamDrafter: drafts for beams, level by level, reusing rows that were verified before.

Owns which guesses of a group are extended, and what is drafted after them. Not here: the order of guesses
(medusa/beam/beam_tree.py), how many are verified (medusa/trees/budget.py), when the heads run
(engine/drafters/head_drafter.py).
When a level stops because one beam's draft is missing, the drafts of the other beams were still verified: the model's
own log-probabilities of their continuations are known (select.py), and the heads continue from their rows. So only a
few of W beams need guesses, and what was missing in one step is drafted in the next. This memory only affects drafts,
never the result.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from medusa_dist.engine.beam.group import BeamGroup
from medusa_dist.engine.beam.result import Known
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.medusa.beam.beam_tree import MAX_DEPTH, num_followed
from medusa_dist.medusa.beam.search import Ranked
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.heads.sequential import SequentialHeads
from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates

_NEVER = -80.0  # log-probabilities below this are 0 as a float32 confidence


@dataclass(frozen=True, eq=False)
class _Item:
    """A node that a list of guesses is drafted for.

    known: the model's result for it, if it was verified. Otherwise hidden [I] belongs to the last verified row on the
    path, tail holds the tokens after that row, and state [H] is the sequential cell's state before the last of them
    (None if there is only one).
    above: list and index of the guess that it follows; None: it follows the root.
    """

    group: int
    beam: int
    path: tuple[int, ...]
    score: float
    known: Known | None
    hidden: Tensor
    tail: tuple[int, ...]
    state: Tensor | None = None
    above: tuple[int, int] | None = None


@dataclass
class _Lists:
    """The lists of one beam while they are built."""

    ranked: list[Ranked] = field(default_factory=list)
    above: list[tuple[int, int] | None] = field(default_factory=list)

    def candidates(self) -> Candidates:
        """As Candidates; short lists are padded with guesses of confidence 0."""
        width = max(map(len, self.ranked))
        tokens = np.zeros((len(self.ranked), width), dtype=np.int64)
        chances = np.zeros((len(self.ranked), width), dtype=np.float32)
        follows = np.full((len(self.ranked), width), NOWHERE, dtype=np.int64)
        for index, (ranked, above) in enumerate(zip(self.ranked, self.above, strict=True)):
            tokens[index, : len(ranked)] = [token for token, _ in ranked]
            chances[index, : len(ranked)] = np.exp([min(0.0, log_p) for _, log_p in ranked])
            if above is not None:
                follows[above] = index
        return Candidates(tokens, chances, follows)


class BeamDrafter:
    """embedding: of the base model [V, H], for heads that read tokens. token_ids [D]: those that the heads know."""

    def __init__(
        self, heads: MedusaHeads | SequentialHeads, embedding: Tensor | None, token_ids: Tensor, num_guesses: int
    ) -> None:
        self._heads = heads
        self._embedding = embedding
        self._token_ids = token_ids
        self._num_ranks = num_guesses

    def draft(self, groups: Seq[BeamGroup], hidden: Seq[Seq[Tensor]]) -> dict[Sequence, Candidates]:
        """The candidates of all beams. hidden[g][b] [I]: of the row before the last token of beam b of group g."""
        lists = [[_Lists() for _ in group.beams] for group in groups]
        items = [
            _Item(number, b, (), score, group.memory.get((b, ())), hidden[number][b], (beam.tokens[-1],))
            for number, group in enumerate(groups)
            for b, (beam, score) in enumerate(zip(group.beams, group.search.scores, strict=True))
        ]
        depth = 0
        while items:
            depth += 1
            next_items: list[_Item] = []
            for item, (ranked, state) in zip(items, self._guesses(items), strict=True):
                own = lists[item.group][item.beam]
                own.ranked.append(ranked)
                own.above.append(item.above)
                if depth < min(groups[item.group].reach, MAX_DEPTH):
                    next_items += self._behind(item, groups[item.group], (ranked, state), len(own.ranked) - 1)
            items = [
                item
                for number, of_group in groupby(next_items, key=lambda item: item.group)
                for item in sorted(of_group, key=lambda i: -i.score)[: num_followed(depth, len(groups[number].beams))]
            ]
            items = [item for item in items if item.known is not None or len(item.tail) <= self._heads.num_heads]
        return {
            beam: own.candidates()
            for group, of_group in zip(groups, lists, strict=True)
            for beam, own in zip(group.beams, of_group, strict=True)
        }

    def _behind(self, item: _Item, group: BeamGroup, made: tuple[Ranked, Tensor | None], place: int) -> list[_Item]:
        """The guesses made for `item` that may be extended; they are list number `place` of its beam."""
        ranked, state = made
        hidden, tail = (item.hidden, item.tail) if item.known is None else (item.known.hidden, ())
        next_items = []
        for index, (token, log_p) in enumerate(ranked):
            if token not in group.rules.ends and log_p > _NEVER:
                path = (*item.path, token)
                known = group.memory.get((item.beam, path))
                fields = item.score + log_p, known, hidden, (*tail, token), state, (place, index)
                next_items.append(_Item(item.group, item.beam, path, *fields))
        return next_items

    def _guesses(self, items: Seq[_Item]) -> list[tuple[Ranked, Tensor | None]]:
        """For each item: its guesses, and the sequential cell's state after it."""
        unknown = [item for item in items if item.known is None]
        guessed = iter(self._guess(unknown) if unknown else [])
        return [next(guessed) if item.known is None else (item.known.ranked, None) for item in items]

    def _guess(self, items: Seq[_Item]) -> list[tuple[Ranked, Tensor | None]]:
        states: Seq[Tensor | None] = [None] * len(items)
        if isinstance(self._heads, SequentialHeads):
            fresh = [i for i, item in enumerate(items) if item.state is None]
            before = [item.state for item in items]
            if fresh:
                started = self._heads.start(torch.stack([items[i].hidden for i in fresh]))
                for i, state in zip(fresh, started, strict=True):
                    before[i] = state
            stacked = torch.stack([state.to(self._heads.dtype) for state in before if state is not None])
            after, logits = self._heads.step(stacked, self._embed([item.tail[-1] for item in items]))
            states = list(after)
        else:  # all heads of the file guess at once, from the token after the known row
            hidden = torch.stack([item.hidden for item in items])
            embedding = self._embed([item.tail[0] for item in items]) if self._heads.needs_embedding else None
            heads = torch.tensor([len(item.tail) - 1 for item in items], device=hidden.device)
            logits = self._heads(hidden, embedding)[torch.arange(len(items), device=hidden.device), heads]
        best, columns = torch.log_softmax(logits, dim=-1).topk(min(self._num_ranks, logits.shape[-1]), dim=-1)
        pairs = zip(self._token_ids[columns].tolist(), best.tolist(), states, strict=True)
        return [(list(zip(tokens, log_p, strict=True)), state) for tokens, log_p, state in pairs]

    def _embed(self, tokens: list[int]) -> Tensor:
        assert self._embedding is not None
        return self._embedding[torch.tensor(tokens, device=self._embedding.device)]
