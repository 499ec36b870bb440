"""Continuations: the candidates that follow earlier occurrences of a sequence's last tokens.

Owns the tree of continuations and their raw confidences. Not here: finding the occurrences (suffix_index.py),
calibration (medusa/trees/calibration.py).
Sources: prompt lookup decoding (Saxena 2023) copies what followed the last n-gram; SuffixDecoding (arXiv 2411.04975)
drafts the tree of all continuations and scores them by frequency. Here each occurrence votes for its next token, with
the length of its match as weight, which grows by one with each token that is copied.
"""

from collections.abc import Sequence

import numpy as np

from medusa_dist.medusa.lookup.suffix_index import MAX_MATCH, Occurrence
from medusa_dist.medusa.trees.candidates import NO_TOKEN, NOWHERE, Candidates

NUM_GUESSES = 3  # different next tokens per position
_MAX_LISTS = 32  # positions drafted per sequence


def continuations(tokens: Sequence[int], occurrences: Sequence[Occurrence], max_depth: int) -> Candidates | None:
    """Up to max_depth tokens after each occurrence, equal beginnings shared; None without occurrences.

    Confidence of a next token: the weights of its occurrences / (the weights of all + 1), so it falls with short
    matches and with disagreement. A copy may run into its own output: text that repeats is drafted further.
    """
    if not occurrences:
        return None
    ids: list[list[int]] = []
    chances: list[list[float]] = []
    follows: list[list[int]] = []
    # Lists to write, breadth first: occurrences that agree so far, tokens copied, and the guess that it follows.
    queue: list[tuple[Sequence[Occurrence], list[int], tuple[int, int] | None]] = [(occurrences, [], None)]
    for agreed, copied, above in queue:
        if len(ids) == _MAX_LISTS:
            break
        if above is not None:
            follows[above[0]][above[1]] = len(ids)
        votes: dict[int, list[Occurrence]] = {}
        for one in agreed:
            votes.setdefault(_token_at(tokens, copied, one.next + len(copied)), []).append(one)
        weights = {t: sum(min(MAX_MATCH, one.length + len(copied)) for one in voters) for t, voters in votes.items()}
        total = sum(weights.values()) + 1
        best = sorted(votes, key=lambda token: -weights[token])[:NUM_GUESSES]
        empty = NUM_GUESSES - len(best)
        ids.append(best + [NO_TOKEN] * empty)
        chances.append([weights[token] / total for token in best] + [0.0] * empty)
        follows.append([NOWHERE] * NUM_GUESSES)
        if len(copied) + 1 < max_depth:
            place = len(ids) - 1
            queue += [(votes[token], [*copied, token], (place, i)) for i, token in enumerate(best)]
    return Candidates(np.array(ids), np.array(chances, dtype=np.float32), np.array(follows))


def _token_at(tokens: Sequence[int], copied: list[int], index: int) -> int:
    """The token at an index that may lie beyond the known tokens, among the copied ones."""
    return tokens[index] if index < len(tokens) else copied[index - len(tokens)]
