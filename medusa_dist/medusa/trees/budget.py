"""Verification budget: how many drafts to verify for the most tokens per second.

Owns the rule and the cost curve it needs. Pure. Not here: the values of drafts (tree.py), measuring
(engine/startup/step_cost.py), which sequence gets the nodes (engine/spec/tree_policy.py).
With B decoding sequences, P prompt rows, and all candidates of all sequences sorted by value s_1 >= s_2 >= ...
(probability of being accepted), verifying the best n yields B + s_1 + ... + s_n tokens in

    t(B) + t(B + P + n) - t(B + P) + n c + d [n > 0] + t_draft(B) seconds:

the time of a decoding step, plus what drafts add to this step. Prompt rows cost the same now or later, so they must not
make drafts in the same step look cheap. Values fall along each path, so the best n of the batch form trees. All n are
tried: t has steps and is not even monotone.
Source: goodput scheduling (TurboSpec, arXiv 2406.14066), extended from chains to trees.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medusa_dist.ops.arrays import Array, Ints


@dataclass(frozen=True)
class StepCost:
    """Measured seconds of a step by number of rows, linear between the points and beyond the last two.

    draft_s, draft_s_each: cost of drafting per step and per sequence, independent of how many drafts are verified.
    node_s: cost of a draft token beyond that of its row (c). tree_s: cost of a step with any draft tokens beyond that
    (d).
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    draft_s: float = 0.0
    draft_s_each: float = 0.0
    node_s: float = 0.0
    tree_s: float = 0.0

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.seconds) >= 2 and list(self.rows) == sorted(set(self.rows))

    def __call__(self, num_rows: int) -> float:
        """Seconds of a step with num_rows rows."""
        if num_rows <= self.rows[0]:  # single rows are padded, so fewer rows are not cheaper
            return self.seconds[0]
        right = min(bisect_left(self.rows, num_rows), len(self.rows) - 1)
        x0, x1 = self.rows[right - 1], self.rows[right]
        y0, y1 = self.seconds[right - 1], self.seconds[right]
        return y0 + (y1 - y0) * (num_rows - x0) / (x1 - x0)

    def of_all(self, num_rows: Ints) -> Array:
        """The same for many numbers of rows at once."""
        rows, seconds = np.array(self.rows), np.array(self.seconds)
        right = 1 + rows[1:-1].searchsorted(num_rows)
        x0, x1, y0, y1 = rows[right - 1], rows[right], seconds[right - 1], seconds[right]
        line: Array = y0 + (y1 - y0) * (num_rows - x0) / (x1 - x0)
        return np.where(num_rows <= rows[0], seconds[0], line)

    def drafting(self, num_sequences: int) -> float:
        """Seconds to draft for this many sequences."""
        return self.draft_s + self.draft_s_each * num_sequences

    def with_drafting(self, seconds: float) -> "StepCost":
        """The same curve where drafting takes this many seconds, for any number of sequences."""
        return replace(self, draft_s=seconds, draft_s_each=0.0)

    def raised(self, seconds: float, tree_s: float, node_s: float) -> "StepCost":
        """The curve of steps that take longer than measured: per step, per step with drafts, and per node."""
        return replace(self, seconds=tuple(s + seconds for s in self.seconds), tree_s=tree_s, node_s=node_s)


def best_budget(values: Sequence[float], num_sequences: int, num_other_rows: int, cost: StepCost) -> tuple[int, float]:
    """How many of `values` (falling) to verify, and the predicted speed-up over verifying none without running the
    heads.

    num_sequences: B >= 1, each contributes its root's row and one token. num_other_rows: P, prompt rows.
    """
    base_rows = num_sequences + num_other_rows
    plain_s, draft_s = cost(num_sequences), cost.drafting(num_sequences)
    if not values:
        return 0, num_sequences / (plain_s + draft_s) * plain_s / num_sequences
    n = np.arange(len(values) + 1)
    more_s = cost.of_all(base_rows + n) - cost(base_rows)
    if num_other_rows:  # with prompts no row is free, even if a noisy curve says so
        more_s = np.maximum(0.0, more_s)
    drafts_s = n * cost.node_s + cost.tree_s
    drafts_s[0] = 0.0
    rates = np.cumsum([float(num_sequences), *values]) / (plain_s + more_s + drafts_s + draft_s)
    best = int(rates.argmax())  # the smallest of equally good ones
    return best, float(rates[best]) * plain_s / num_sequences
