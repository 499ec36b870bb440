"""BeamDrafter: guesses for the beams of searches, level by level, from memory where a row was verified.

Owns which guesses of a group are followed up, and what is drafted behind them. Not here: the order of guesses and how
many are verified (medusa/beam/beam_tree.py), when heads run (drafter.py).
A level that one beam held up was verified for the others: the model's own log-probabilities of what follows those are
known (judge_beams.py), and the heads draft on from the rows behind. So of W beams only a few have to be guessed for,
and what was missing in one step is there in the next. Memory drafts, and never decides.
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
from medusa_dist.medusa.trees.tree import NOWHERE, Candidates

_NEVER = -80.0  # log-probabilities that are no confidence in float32


@dataclass(frozen=True, eq=False)
class _Item:
    """A place that a list of guesses is drafted for.

    known: what the model said there, if it did. Else hidden [I] is that of the last row that was verified on the way,
    tail the tokens behind it, and state [H] the sequential cell's before the last of them (None: behind one token).
    above: list and rank of the guess that it follows; None: it follows the root.
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
    """One beam's lists, as they grow."""

    ranked: list[Ranked] = field(default_factory=list)
    above: list[tuple[int, int] | None] = field(default_factory=list)

    def candidates(self) -> Candidates:
        """In the form that trees are made of; short lists are filled up with guesses of no confidence."""
        num_ranks = max(map(len, self.ranked))
        tokens = np.zeros((len(self.ranked), num_ranks), dtype=np.int64)
        chances = np.zeros((len(self.ranked), num_ranks), dtype=np.float32)
        follows = np.full((len(self.ranked), num_ranks), NOWHERE, dtype=np.int64)
        for place, (ranked, above) in enumerate(zip(self.ranked, self.above, strict=True)):
            tokens[place, : len(ranked)] = [token for token, _ in ranked]
            chances[place, : len(ranked)] = np.exp([min(0.0, log_p) for _, log_p in ranked])
            if above is not None:
                follows[above] = place
        return Candidates(tokens, chances, follows)


class BeamDrafter:
    """embedding: of the base [V, H], for heads that read tokens. token_ids [D]: those that the heads know."""

    def __init__(
        self, heads: MedusaHeads | SequentialHeads, embedding: Tensor | None, token_ids: Tensor, num_ranks: int
    ) -> None:
        self._heads = heads
        self._embedding = embedding
        self._token_ids = token_ids
        self._num_ranks = num_ranks

    def draft(self, groups: Seq[BeamGroup], hidden: Seq[Seq[Tensor]]) -> dict[Sequence, Candidates]:
        """The candidates of all beams. hidden[g][b] [I]: of the row before the last token of group g's beam b."""
        lists = [[_Lists() for _ in group.beams] for group in groups]
        items = [
            _Item(number, b, (), score, group.memory.get((b, ())), hidden[number][b], (beam.tokens[-1],))
            for number, group in enumerate(groups)
            for b, (beam, score) in enumerate(zip(group.beams, group.search.scores, strict=True))
        ]
        depth = 0
        while items:
            depth += 1
            onward: list[_Item] = []
            for item, (ranked, state) in zip(items, self._guesses(items), strict=True):
                own = lists[item.group][item.beam]
                own.ranked.append(ranked)
                own.above.append(item.above)
                if depth < min(groups[item.group].reach, MAX_DEPTH):
                    onward += self._behind(item, groups[item.group], (ranked, state), len(own.ranked) - 1)
            items = [
                item
                for number, of_group in groupby(onward, key=lambda item: item.group)
                for item in sorted(of_group, key=lambda i: -i.score)[: num_followed(depth, len(groups[number].beams))]
            ]
            items = [item for item in items if item.known is not None or len(item.tail) <= self._heads.num_heads]
        return {
            beam: own.candidates()
            for group, of_group in zip(groups, lists, strict=True)
            for beam, own in zip(group.beams, of_group, strict=True)
        }

    def _behind(self, item: _Item, group: BeamGroup, made: tuple[Ranked, Tensor | None], place: int) -> list[_Item]:
        """What may be followed up of the guesses made for `item`, which are its beam's list number `place`."""
        ranked, state = made
        hidden, tail = (item.hidden, item.tail) if item.known is None else (item.known.hidden, ())
        onward = []
        for rank, (token, log_p) in enumerate(ranked):
            if token not in group.rules.ends and log_p > _NEVER:
                path = (*item.path, token)
                known = group.memory.get((item.beam, path))
                about = item.score + log_p, known, hidden, (*tail, token), state, (place, rank)
                onward.append(_Item(item.group, item.beam, path, *about))
        return onward

    def _guesses(self, items: Seq[_Item]) -> list[tuple[Ranked, Tensor | None]]:
        """Of each item: its guesses, and the sequential cell's state behind them."""
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
        else:  # all of a head file's heads guess at once, from the token behind the known row
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
