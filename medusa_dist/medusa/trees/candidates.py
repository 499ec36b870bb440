"""Candidates: what one drafter guesses after a sequence's root.

Owns the lists of guesses and how they follow each other. Not here: confidences (draft.py, calibration.py), candidates
of several drafters (merged.py), which guesses become a tree (tree.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medusa_dist.ops.arrays import Floats, Ints

NOWHERE = -1  # index of a missing list: nothing was drafted there
NO_TOKEN = -1  # pads lists with fewer than R guesses


@dataclass(frozen=True)
class Candidates:
    """The heads' guesses after one sequence's root: lists of guesses, and which list follows which guess.

    tokens, confidences: [lists, R], each list in falling order; list 0 follows the root. confidences[i, r]: probability
    that this guess is the model's own choice, given that its parent is: the head's raw value, or the calibrated one
    (calibration.py).
    follows: [lists, R], the list after each guess (NOWHERE: none), parents before children. None: Medusa's own heads,
    which do not see each other's guesses; list i + 1 follows every guess of list i.
    """

    tokens: Ints
    confidences: Floats
    follows: Ints | None = None

    @cached_property
    def _lists(self) -> list[tuple[list[int], list[float]]]:
        """Tokens and confidences of all lists, as `guesses` gives them: a step reads them many times, one by one."""
        lists = []
        for tokens, confidences in zip(self.tokens.tolist(), self.confidences.tolist(), strict=True):
            count = tokens.index(NO_TOKEN) if NO_TOKEN in tokens else len(tokens)
            lists.append((tokens[:count], confidences[:count]))
        return lists

    @cached_property
    def _next_lists(self) -> list[list[int]]:
        assert self.follows is not None
        next_lists: list[list[int]] = self.follows.tolist()
        return next_lists

    def guesses(self, place: int) -> tuple[list[int], list[float]]:
        """Tokens and confidences of a list, in falling order, without padding."""
        return self._lists[place]

    def list_after(self, place: int, guess_index: int) -> int:
        """The list after guess `guess_index` of list `place`, or NOWHERE."""
        if self.follows is not None:
            return self._next_lists[place][guess_index]
        return place + 1 if place + 1 < len(self.tokens) else NOWHERE

    def index_of(self, place: int, token: int) -> int:
        """Index of the token in a list, or NOWHERE."""
        if place == NOWHERE:
            return NOWHERE
        tokens, _ = self._lists[place]
        return tokens.index(token) if token in tokens else NOWHERE

    def list_after_token(self, place: int, token: int) -> int:
        """The list after `token` of list `place`; heads that see no guesses have one next list for any token."""
        if place == NOWHERE or self.follows is None:
            return place if place == NOWHERE else self.list_after(place, 0)
        guess_index = self.index_of(place, token)
        return NOWHERE if guess_index == NOWHERE else self.list_after(place, guess_index)

    @cached_property
    def depths(self) -> Ints:
        """[lists]: which head made each list; 1 is the first."""
        if self.follows is None:
            return np.arange(1, len(self.tokens) + 1)
        depths = np.ones(len(self.tokens), dtype=np.int64)
        for index, followers in enumerate(self.follows):
            depths[followers[followers != NOWHERE]] = depths[index] + 1
        return depths

    def top_k_indices(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Indices of the tokens after the root in their lists, as far as they were drafted."""
        indices: list[int] = []
        index = 0
        for token in tokens:
            guess_index = self.index_of(index, token)
            if guess_index == NOWHERE:
                break
            indices.append(guess_index)
            index = self.list_after(index, guess_index)
        return tuple(indices)

    def with_forced_prefix(self, tokens: Sequence[int]) -> "Candidates":
        """These guesses with `tokens` forced at the first depths; they may reach deeper than the heads."""
        if not tokens:
            return self
        num_forced, num_guesses = len(tokens), self.tokens.shape[1]
        sure: Ints = np.zeros((num_forced, num_guesses), dtype=np.int64)
        sure[:, 0] = tokens
        chances: Floats = np.zeros((num_forced, num_guesses), dtype=np.float32)
        chances[:, 0] = 1.0
        if self.follows is None:
            tails = self.tokens[num_forced:], self.confidences[num_forced:]
            return Candidates(np.concatenate([sure, tails[0]]), np.concatenate([chances, tails[1]]))
        next_list = 0
        for token in tokens:
            next_list = self.list_after_token(next_list, token)
        chain = np.full((num_forced, num_guesses), NOWHERE, dtype=np.int64)
        chain[:, 0] = [*range(1, num_forced), NOWHERE if next_list == NOWHERE else next_list + num_forced]
        moved = np.where(self.follows == NOWHERE, NOWHERE, self.follows + num_forced)
        return Candidates(
            np.concatenate([sure, self.tokens]),
            np.concatenate([chances, self.confidences]),
            np.concatenate([chain, moved]),
        )
