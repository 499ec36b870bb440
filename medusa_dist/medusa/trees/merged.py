"""MergedCandidates: the candidates of several drafters as one set of lists.

Owns how confidences of the same and of different tokens add up. Not here: calibration of each drafter (calibration.py),
which guesses become a tree (tree.py).
"""

from collections.abc import Mapping, Sequence

from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates

Guesses = tuple[list[int], list[float]]


class MergedCandidates:
    """The candidates of several drafters after one root, merged list by list as a tree asks for them."""

    def __init__(self, parts: Sequence[Candidates]) -> None:
        """parts: calibrated, in the order in which they are mixed: most trusted first."""
        self._parts = parts
        self._places = [(0,) * len(parts)]  # list -> the list of each part, or NOWHERE
        self._lists: dict[int, Guesses] = {}

    def guesses(self, place: int) -> Guesses:
        """Tokens and confidences of a list, in falling order."""
        if place not in self._lists:
            own = zip(self._parts, self._places[place], strict=True)
            self._lists[place] = mix_in_order([part.guesses(at) for part, at in own if at != NOWHERE])
        return self._lists[place]

    def list_after(self, place: int, guess_index: int) -> int:
        """The list after a guess, or NOWHERE."""
        token = self.guesses(place)[0][guess_index]
        own = zip(self._parts, self._places[place], strict=True)
        places = tuple(part.list_after_token(at, token) for part, at in own)
        if all(at == NOWHERE for at in places):
            return NOWHERE
        self._places.append(places)
        return len(self._places) - 1


def merged(parts: Sequence[Candidates]) -> Candidates | MergedCandidates:
    """The candidates of all parts; a lone one stays as it is."""
    return parts[0] if len(parts) == 1 else MergedCandidates(parts)


def mix_in_order(lists: Sequence[Guesses]) -> Guesses:
    """One list of guesses in falling order. The first list counts in full; each further one shares the probability that
    those before it leave. Confidences of equal tokens add up.

    This is how PPM mixes contexts (Cleary & Witten 1984): a long match says more than the heads, and escapes to them
    where it is unsure. Of four rules (also: sum, mean, noisy or) it predicted acceptance best.
    """
    if len(lists) == 1:
        return lists[0]
    sums: dict[int, float] = {}
    left = 1.0
    for tokens, confidences in lists:
        for token, confidence in zip(tokens, confidences, strict=True):
            sums[token] = sums.get(token, 0.0) + left * confidence
        left *= max(0.0, 1.0 - sum(confidences))
    ranked = sorted(sums, key=lambda token: -sums[token])
    return ranked, [sums[token] for token in ranked]


def drafters_of(
    tokens: Sequence[int], parents: Sequence[int], candidates: Mapping[str, Candidates]
) -> list[tuple[str, ...]]:
    """Who guessed each node of a tree: names of the drafters; () for tokens that a grammar forced."""
    found: list[tuple[str, ...]] = [()] * len(tokens)
    for name, part in candidates.items():
        places: list[int] = []  # the list after each node
        for node, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
            at = places[parent] if parent >= 0 else 0
            if part.index_of(at, token) != NOWHERE:
                found[node] += (name,)
            places.append(part.list_after_token(at, token))
    return found
