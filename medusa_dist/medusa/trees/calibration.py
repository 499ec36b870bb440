"""How much a head's confidence is worth: fitted while serving, to what verification accepts.

Owns the estimator. Not here: raw confidences (draft.py), what is done with calibrated ones (tree.py, budget.py).
P(a node is accepted | its parent is) = sigmoid(w * logit(q) + b), with q the raw confidence, one slope w per
band and one intercept b per head and band. Labels: children of the root and of accepted nodes; below the
first rejection nothing is known, and nothing is learned. (The form is that of vLLM's acceptance estimator; here it is
fitted by averaged gradient steps, since a label costs a microsecond that way.)
Calibration changes which drafts are verified and so the speed, never the output.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from medusa_dist.medusa.trees.tree import ROOT, Candidates, Tree
from medusa_dist.ops.arrays import Floats, Ints

_EDGE = 1e-4  # confidences are kept this far from 0 and 1
_FIRST_RATE, _LAST_RATE, _RATE_HALVES_AFTER = 0.2, 0.005, 50
_MAX_HEADS = 16  # of a head file
GREEDY, SAMPLED, BEAMS = 0, 1, 2  # bands: temperature 0, above 0, and beams, where several guesses are right


@dataclass(frozen=True, slots=True)
class Label:
    """One verified draft whose parent was accepted. depth: 1 is the first head."""

    depth: int
    confidence: float
    accepted: bool


class Calibration:
    """Starts near where the demo's heads settle: heads are surer of themselves than they should be."""

    def __init__(self, num_heads: int = _MAX_HEADS) -> None:
        self.slopes = [0.8, 0.6, 0.8]
        self.intercepts = [[start] * num_heads for start in (-0.6, -1.0, -0.6)]
        self._counts = [[0] * num_heads for _ in (GREEDY, SAMPLED, BEAMS)]

    def believe(self, candidates: Candidates, band: int) -> Candidates:
        """The same guesses with chances of acceptance for confidences."""
        return replace(candidates, confidences=self.apply(candidates.confidences, band, candidates.depths))

    def apply(self, confidences: Floats, band: int, depths: Ints | None = None) -> Floats:
        """Raw confidences [lists, R] -> chances of acceptance [lists, R]. depths: of the lists; None: 1, 2, 3, ..."""
        clipped = np.clip(confidences, _EDGE, 1.0 - _EDGE)
        heads = np.arange(len(clipped)) if depths is None else depths - 1
        intercepts = np.array(self.intercepts[band], dtype=np.float32)[heads, None]
        logits = self.slopes[band] * np.log(clipped / (1.0 - clipped)) + intercepts
        chances: Floats = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        return chances

    def learn(self, labels: list[Label], band: int) -> None:
        """One gradient step of the log-loss per label, smaller with each label a head has seen."""
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


def labels_of(tree: Tree, accepted: tuple[int, ...], candidates: Candidates) -> list[Label]:
    """What a verified tree teaches: every child of the root and of the accepted nodes.

    candidates: those the tree was made of, with the heads' raw confidences.
    """
    hits = set(accepted)
    behind = {ROOT: 0}  # the root and the accepted nodes: the list that was drafted behind each
    labels = []
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        if parent in behind:
            place = behind[parent]
            rank = int(np.flatnonzero(candidates.tokens[place] == token)[0])
            labels.append(Label(tree.depths[node], float(candidates.confidences[place, rank]), node in hits))
            if node in hits:
                behind[node] = candidates.after(place, rank)
    return labels
