"""Replay: tokens per step of any tree on recorded answers, without running the model.

Owns the replay and its statistics: top-k hits of the heads, tokens per step by tree size, the best static trees,
reliability of confidences. Pure. Not here: recording (heads_tools/record_drafts.py), step times (budget.py).
It is exact, not a model: verification emits the same answer whatever the tree, and the heads' guesses at a position
depend only on the tokens before it. So guesses recorded at every position of an answer tell where each step of any tree
would have ended; the next step begins there. Positions right after a rejection are harder than average, and a replay
visits just those positions that the tree would.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medusa_dist.medusa.trees.calibration import Calibration, Label, labels_of
from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.medusa.trees.tree import ROOT, Tree, best_tree, order_paths
from medusa_dist.ops.arrays import Floats

Path = tuple[int, ...]
_LEARNING_NODES = 15  # of the trees to which a calibration is fitted


@dataclass(frozen=True)
class RecordedAnswer:
    """tokens: the model's output. guesses[i]: the heads' guesses after tokens[i], for all tokens but the last.

    sampling_mode: sampling mode (calibration.py), by the temperature.
    """

    tokens: tuple[int, ...]
    guesses: tuple[Candidates, ...]
    sampling_mode: int
    category: str = ""

    def __post_init__(self) -> None:
        assert len(self.guesses) == max(0, len(self.tokens) - 1)

    def after(self, place: int) -> tuple[int, ...]:
        """The tokens after the root tokens[place]."""
        return self.tokens[place + 1 :]


def truth_guess_indices(guesses: Candidates, truth: Sequence[int]) -> Path:
    """Index of the true token in each head's guesses, up to the first head that does not have it."""
    return guesses.top_k_indices(truth)


def truth_nodes(tree: Tree, truth: Sequence[int]) -> list[int]:
    """The nodes that verification would accept, from the root down."""
    nodes: list[int] = []
    for token in truth:
        child = tree.children.get(nodes[-1] if nodes else ROOT, {}).get(token)
        if child is None:
            break
        nodes.append(child)
    return nodes


def node_chances(tree: Tree, values: Sequence[float]) -> list[float]:
    """The confidence of each node, given that its parent is accepted. values: as defined in best_tree (tree.py)."""
    above = [1.0 if parent == ROOT else values[parent] for parent in tree.parents]
    return [value / before if before else 0.0 for value, before in zip(values, above, strict=True)]


def num_steps(answer: RecordedAnswer, accepted: Sequence[int]) -> int:
    """Number of steps for the answer. accepted[i]: draft tokens accepted by a step whose root is tokens[i].

    The first step reads the prompt and emits tokens[0], without drafts.
    """
    steps, position = 1, 0
    while position < len(answer.tokens) - 1:
        position += accepted[position] + 1
        steps += 1
    return steps


def tokens_per_step(answers: Sequence[RecordedAnswer], accepted: Sequence[Sequence[int]]) -> float:
    """Over all answers; 1 without drafts."""
    steps = sum(num_steps(answer, each) for answer, each in zip(answers, accepted, strict=True))
    return sum(len(answer.tokens) for answer in answers) / steps


def accuracies(answers: Iterable[RecordedAnswer]) -> list[list[float]]:
    """[head][r]: share of positions where one of the head's r + 1 best guesses was right. Positions near the end of an
    answer, where a head would guess beyond it, are left out; for heads that see earlier guesses, also positions where
    those were wrong."""
    hits: list[Floats] = []
    counts: list[int] = []
    for answer in answers:
        for position, guesses in enumerate(answer.guesses):
            at = 0
            for head, token in enumerate(answer.after(position)):
                if at == NOWHERE:
                    break
                if head == len(hits):
                    hits.append(np.zeros(guesses.tokens.shape[1], dtype=np.float32))
                    counts.append(0)
                hits[head] += guesses.tokens[at] == token
                counts[head] += 1
                at = guesses.list_after_token(at, token)
    return [[float(x) for x in np.cumsum(hit) / count] for hit, count in zip(hits, counts, strict=True)]


def fit(answers: Iterable[RecordedAnswer]) -> Calibration:
    """A calibration that has learned from all positions once, as it does while serving."""
    calibration = Calibration()
    for answer in answers:
        for position, guesses in enumerate(answer.guesses):
            tree, _ = best_tree(
                believed(guesses, calibration, answer.sampling_mode), _LEARNING_NODES, len(guesses.tokens)
            )
            accepted = truth_nodes(tree, answer.after(position))
            calibration.learn(labels_of(tree, tuple(accepted), guesses), answer.sampling_mode)
    return calibration


def believed(guesses: Candidates, calibration: Calibration, band: int) -> Candidates:
    """The same guesses with calibrated confidences."""
    return calibration.calibrated(guesses, band)


def dynamic_curve(answers: Sequence[RecordedAnswer], max_nodes: int, calibration: Calibration) -> list[float]:
    """[n - 1]: tokens per step if each step verifies the n best drafts, n = 1..max_nodes."""
    # The best n nodes are the first n of the best max_nodes, so one tree per position is enough.
    paths = []
    for answer in answers:
        each = []
        for position, guesses in enumerate(answer.guesses):
            tree, _ = best_tree(believed(guesses, calibration, answer.sampling_mode), max_nodes, len(guesses.tokens))
            each.append(truth_nodes(tree, answer.after(position)))
        paths.append(each)
    return [
        tokens_per_step(answers, [[sum(node < n for node in nodes) for nodes in each] for each in paths])
        for n in range(1, max_nodes + 1)
    ]


def static_accepted(answer: RecordedAnswer, paths: Iterable[Path]) -> list[int]:
    """Draft tokens of the static tree accepted at each position."""
    known = set(paths)
    accepted = []
    for position, guesses in enumerate(answer.guesses):
        ranks = truth_guess_indices(guesses, answer.after(position))
        depth = 0
        while depth < len(ranks) and ranks[: depth + 1] in known:
            depth += 1
        accepted.append(depth)
    return accepted


def path_chances(answers: Iterable[RecordedAnswer]) -> dict[Path, float]:
    """For each path of guess indices that was ever right as a whole: the share of positions where it was."""
    counts: Counter[Path] = Counter()
    num_positions = 0
    for answer in answers:
        for position, guesses in enumerate(answer.guesses):
            ranks = truth_guess_indices(guesses, answer.after(position))
            counts.update(ranks[:depth] for depth in range(1, len(ranks) + 1))
            num_positions += 1
    return {path: count / num_positions for path, count in counts.items()}


def best_static(chances: dict[Path, float], num_nodes: int) -> list[Path]:
    """The static tree of at most num_nodes nodes that gains most. A path is never more likely than its parent, so the
    most likely paths form a tree. Ties: shallower first, then the lower indices."""
    ranked = sorted(chances, key=lambda path: (-chances[path], len(path), sum(path), path))
    return order_paths(ranked[:num_nodes])


def static_curve(answers: Sequence[RecordedAnswer], max_nodes: int) -> list[float]:
    """[n - 1]: tokens per step of the best static tree of n nodes, found on one half of the answers and measured on the
    other, in both directions, so that overfitting does not count."""
    halves = answers[::2], answers[1::2]
    chances = [path_chances(half) for half in halves]
    curve = []
    for n in range(1, max_nodes + 1):
        accepted: list[list[int]] = [[] for _ in answers]
        for side in (0, 1):
            tree = best_static(chances[1 - side], n)
            accepted[side::2] = [static_accepted(answer, tree) for answer in halves[side]]
        curve.append(tokens_per_step(answers, accepted))
    return curve


@dataclass(frozen=True)
class Bin:
    """Draft tokens whose predicted acceptance, given an accepted parent, is in one tenth of [0, 1]."""

    count: int
    predicted: float  # their mean
    measured: float  # share that was accepted


def reliability(answers: Iterable[RecordedAnswer], calibration: Calibration | None) -> list[Bin]:
    """Ten bins by predicted acceptance, without empty ones. calibration: None uses the heads' raw confidences."""
    labels: list[Label] = []
    for answer in answers:
        for position, guesses in enumerate(answer.guesses):
            seen = guesses if calibration is None else believed(guesses, calibration, answer.sampling_mode)
            tree, _ = best_tree(seen, _LEARNING_NODES, len(guesses.tokens))
            labels += labels_of(tree, tuple(truth_nodes(tree, answer.after(position))), seen)
    bins: dict[int, list[Label]] = {}
    for label in labels:
        bins.setdefault(min(9, int(10 * label.confidence)), []).append(label)
    return [
        Bin(
            len(each),
            sum(label.confidence for label in each) / len(each),
            sum(label.accepted for label in each) / len(each),
        )
        for _, each in sorted(bins.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between predicted and measured acceptance, weighted by count."""
    return sum(b.count * abs(b.predicted - b.measured) for b in bins) / max(1, sum(b.count for b in bins))
