"""Calibration of head confidences, fitted while serving to what verification accepts.

Owns the estimator. Not here: raw confidences (draft.py), the use of calibrated ones (tree.py, budget.py).
P(a node is accepted | its parent is) = sigmoid(w * logit(q) + b), with q the raw confidence, one slope w per sampling
mode, and one intercept b per head and mode. Labels: children of the root and of accepted nodes; below the first
rejection nothing is known, so nothing is learned. (The form is that of vLLM's acceptance estimator; here it is fitted
by averaged gradient steps, which cost a microsecond per label.)
Calibration changes which drafts are verified, and so the speed, but never the output.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.medusa.trees.tree import ROOT, Tree
from medusa_dist.ops.arrays import Floats, Ints

_EDGE = 1e-4  # confidences are clipped to this distance from 0 and 1
_FIRST_RATE, _LAST_RATE, _RATE_HALVES_AFTER = 0.2, 0.005, 50
MAX_DEPTH = 16  # of candidates: most heads of a head file, longest chain of lookup
GREEDY, SAMPLED, BEAMS = 0, 1, 2  # sampling modes: temperature 0, above 0, and beams, where several guesses are right


class Label(NamedTuple):
    """One verified draft token whose parent was accepted. depth: 1 is the first head."""

    depth: int
    confidence: float
    accepted: bool


class Calibration:
    """Starts near the values to which the demo heads converge: heads are overconfident."""

    def __init__(self, num_heads: int = MAX_DEPTH) -> None:
        self.slopes = [0.8, 0.6, 0.8]
        self.intercepts = [[start] * num_heads for start in (-0.6, -1.0, -0.6)]
        self._counts = [[0] * num_heads for _ in (GREEDY, SAMPLED, BEAMS)]

    def calibrated(self, candidates: Candidates, band: int) -> Candidates:
        """The same guesses with acceptance probabilities instead of raw confidences."""
        return replace(candidates, confidences=self.apply(candidates.confidences, band, candidates.depths))

    def calibrated_together(self, parts: Sequence[Candidates], bands: Sequence[int]) -> list[Candidates]:
        """`calibrated` of each, in one pass: all must have lists of the same length R."""
        sizes = [len(part.tokens) for part in parts]
        heads = np.concatenate([part.depths for part in parts])
        chances = self.apply(np.concatenate([part.confidences for part in parts]), np.repeat(bands, sizes), heads)
        ends = np.cumsum(sizes).tolist()
        return [
            Candidates(part.tokens, chances[end - size : end], part.follows)
            for part, size, end in zip(parts, sizes, ends, strict=True)
        ]

    def apply(self, confidences: Floats, band: int | Ints, depths: Ints | None = None) -> Floats:
        """Raw confidences -> acceptance probabilities, both [lists, R]. depths: of the lists; None: 1, 2, 3, ...

        band: of all lists, or [lists].
        """
        clipped = np.clip(confidences, _EDGE, 1.0 - _EDGE)
        heads = np.arange(len(clipped)) if depths is None else depths - 1
        intercepts = np.array(self.intercepts, dtype=np.float32)[band, heads, None]
        slopes = np.array(self.slopes, dtype=np.float32)[band, ..., None]
        logits = slopes * np.log(clipped / (1.0 - clipped)) + intercepts
        chances: Floats = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        return chances

    def learn(self, labels: list[Label], band: int) -> None:
        """One gradient step on the log-loss per label; the step size falls with the number of labels of the head."""
        for label in labels:
            head = label.depth - 1
            count = self._counts[band][head]
            self._counts[band][head] = count + 1
            rate = max(_LAST_RATE, _FIRST_RATE / (1.0 + count / _RATE_HALVES_AFTER))
            q = min(max(label.confidence, _EDGE), 1.0 - _EDGE)
            x = math.log(q / (1.0 - q))
            chance = 1.0 / (1.0 + math.exp(-(self.slopes[band] * x + self.intercepts[band][head])))
            error = float(label.accepted) - chance
            self.intercepts[band][head] += rate * error
            self.slopes[band] = min(2.0, max(0.2, self.slopes[band] + 0.1 * rate * error * x))


def lookup_calibration() -> Calibration:
    """For lookup: it starts near the values to which answers that copy parts of their prompts converge."""
    made = Calibration()
    made.slopes = [1.1, 1.1, 1.1]
    made.intercepts = [[-0.3] * MAX_DEPTH for _ in made.intercepts]
    return made


def labels_of(tree: Tree, accepted: tuple[int, ...], candidates: Candidates) -> list[Label]:
    """The labels of a verified tree for one drafter: its guesses among the children of the root and of accepted nodes.

    candidates: those of the drafter, with raw confidences.
    """
    hits = set(accepted)
    lists = {ROOT: 0}  # the root and the accepted nodes -> the list drafted after each
    labels = []
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        if parent in lists:
            guess_index = candidates.index_of(lists[parent], token)
            if guess_index != NOWHERE:
                confidence = candidates.guesses(lists[parent])[1][guess_index]
                labels.append(Label(tree.depths[node], confidence, node in hits))
            if node in hits:
                lists[node] = candidates.list_after_token(lists[parent], token)
    return labels
