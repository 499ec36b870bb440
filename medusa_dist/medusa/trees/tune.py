"""Finds the fastest tree: tokens per step from replayed answers over measured step times.

Owns that arithmetic. Pure. Not here: the replay (replay.py), the budget rule of dynamic trees (budget.py), measuring
(heads_tools/tune_tree.py).
B sequences that each verify n drafts emit B E(n) tokens in t(B (1 + n)) + t_draft(B) seconds, with E from the replay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_dist.medusa.trees.budget import StepCost, best_budget
from medusa_dist.medusa.trees.calibration import Calibration
from medusa_dist.medusa.trees.replay import RecordedAnswer, believed, truth_nodes
from medusa_dist.medusa.trees.tree import best_tree


@dataclass(frozen=True)
class Point:
    """A tree of at most `nodes` nodes for one batch size: tokens per step of each sequence, seconds per step."""

    batch: int
    nodes: int
    tokens_per_step: float
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences together."""
        return self.batch * self.tokens_per_step / self.seconds


def plain(batch: int, cost: StepCost) -> Point:
    """No drafts; the heads do not run."""
    return Point(batch, 0, 1.0, cost(batch))


def fixed(curve: Sequence[float], batch: int, cost: StepCost) -> list[Point]:
    """Trees of constant size. curve: [n - 1] tokens per step with n nodes."""
    return [
        Point(batch, n, tokens, cost(batch * (1 + n)) + cost.drafting(batch)) for n, tokens in enumerate(curve, start=1)
    ]


def budgeted(
    answers: Sequence[RecordedAnswer], calibration: Calibration, cost: StepCost, batch: int, max_nodes: int
) -> Point:
    """Dynamic trees as served: each step verifies as many drafts as pay, at most max_nodes per sequence.

    One answer is replayed at a time, so a batch is modelled as `batch` sequences at the same position.
    """
    tokens, steps, seconds = 0, 0, 0.0
    for answer in answers:
        position = 0
        while position < len(answer.guesses):
            guesses = answer.guesses[position]
            tree, values = best_tree(
                believed(guesses, calibration, answer.sampling_mode), max_nodes, len(guesses.tokens)
            )
            repeated = [value for value in values for _ in range(batch)]
            count, _ = best_budget(repeated, batch, 0, cost)
            nodes = count // batch
            accepted = sum(node < nodes for node in truth_nodes(tree, answer.after(position)))
            emitted = min(accepted + 1, len(answer.guesses) - position)
            seconds += cost(batch * (1 + nodes)) + cost.drafting(batch)
            tokens, steps, position = tokens + emitted, steps + 1, position + emitted
    return Point(batch, max_nodes, tokens / steps, seconds / steps)


def fastest(points: Sequence[Point]) -> Point:
    """Most tokens per second; among equals the smallest tree."""
    return max(points, key=lambda point: (point.tokens_per_s, -point.nodes))
