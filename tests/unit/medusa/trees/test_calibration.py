"""Calibration finds the truth it is shown, and learns only what verification has seen."""

import math
import random

import numpy as np
import pytest

from medusa_dist.medusa.trees.calibration import GREEDY, SAMPLED, Calibration, Label, labels_of
from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.medusa.trees.tree import ROOT, Tree


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_calibration_fits_simulated_acceptance() -> None:
    rng = random.Random(3)
    true_slope, true_intercepts = 0.6, [-0.5, -1.5]
    calibration = Calibration(2)
    for _ in range(20_000):
        depth, q = rng.choice([1, 2]), rng.uniform(0.02, 0.98)
        chance = sigmoid(true_slope * math.log(q / (1 - q)) + true_intercepts[depth - 1])
        calibration.learn([Label(depth, q, rng.random() < chance)], SAMPLED)
    grid = np.linspace(0.05, 0.95, 19, dtype=np.float32)
    found = calibration.apply(np.stack([grid, grid]), SAMPLED)
    for head, intercept in enumerate(true_intercepts):
        for q, chance in zip(grid, found[head], strict=True):
            assert chance == pytest.approx(sigmoid(true_slope * math.log(q / (1 - q)) + intercept), abs=0.05)


def test_sampling_modes_are_calibrated_separately() -> None:
    calibration = Calibration(1)
    before = calibration.apply(np.array([[0.5]], dtype=np.float32), GREEDY)
    calibration.learn([Label(1, 0.5, True)] * 100, SAMPLED)
    assert calibration.apply(np.array([[0.5]], dtype=np.float32), GREEDY) == before
    assert calibration.apply(np.array([[0.5]], dtype=np.float32), SAMPLED) > before


def test_calibration_keeps_the_order_of_guesses_and_stays_inside_0_and_1() -> None:
    chances = Calibration(1).apply(np.array([[1.0, 0.9, 0.1, 0.0]], dtype=np.float32), GREEDY)[0]
    assert np.all(np.diff(chances) < 0) and np.all((chances > 0) & (chances < 1))


def test_labels_stop_below_the_first_rejection() -> None:
    #        root -> 7 (accepted) -> 5 (rejected) -> 9 (never seen)
    #             -> 8 (rejected) -> 5 (never seen)
    tree = Tree((7, 8, 5, 5, 9), (ROOT, ROOT, 0, 1, 2))
    candidates = Candidates(
        np.array([[7, 8], [5, 6], [9, 4]]), np.array([[0.6, 0.3], [0.5, 0.2], [0.4, 0.1]], dtype=np.float32)
    )
    labels = labels_of(tree, (0,), candidates)
    assert labels == [
        Label(1, pytest.approx(0.6), True),
        Label(1, pytest.approx(0.3), False),
        Label(2, pytest.approx(0.5), False),
    ]


def test_labels_and_confidences_follow_the_path() -> None:
    """Lists 1 and 2 were both made by head 2, behind different guesses of head 1."""
    candidates = Candidates(
        np.array([[7, 8], [5, 6], [5, 4]]),
        np.array([[0.6, 0.3], [0.5, 0.2], [0.4, 0.1]], dtype=np.float32),
        np.array([[1, 2], [-1, -1], [-1, -1]]),
    )
    tree = Tree((7, 8, 5, 5), (ROOT, ROOT, 0, 1))
    assert labels_of(tree, (1, 3), candidates) == [
        Label(1, pytest.approx(0.6), False),
        Label(1, pytest.approx(0.3), True),
        Label(2, pytest.approx(0.4), True),
    ]
    calibration = Calibration(2)
    calibration.intercepts[GREEDY] = [0.0, -2.0]
    believed = calibration.calibrated(candidates, GREEDY)
    assert believed.follows is candidates.follows
    expected = calibration.apply(candidates.confidences[[0, 1]], GREEDY)
    assert believed.confidences[:2] == pytest.approx(expected)
    assert believed.confidences[2] == pytest.approx(calibration.apply(candidates.confidences[[0, 2]], GREEDY)[1])


def test_nodes_that_another_drafter_guessed_teach_this_one_nothing() -> None:
    """Behind an accepted node of the other one, heads that see no guesses still have their next list."""
    own = Candidates(np.array([[1, 2], [3, 4]]), np.array([[0.5, 0.2], [0.4, 0.3]], dtype=np.float32))
    tree = Tree((9, 1, 3, 8), (-1, -1, 0, 0))
    labels = labels_of(tree, (0, 2), own)
    assert [(label.depth, label.accepted) for label in labels] == [(1, False), (2, True)]


def test_candidates_calibrated_together_have_the_bits_of_each_alone() -> None:
    rng = np.random.default_rng(3)
    calibration = Calibration()
    calibration.slopes = [0.71, 1.3, 0.9]
    calibration.intercepts = [[0.1 * head - mode for head in range(16)] for mode in range(3)]
    parts = []
    for num_lists in (4, 1, 3, 4):
        tokens = rng.integers(50, size=(num_lists, 10))
        confidences = np.sort(rng.random((num_lists, 10), dtype=np.float32))[:, ::-1].copy()
        follows = None if num_lists != 3 else np.array([[1] + [NOWHERE] * 9, [2] + [NOWHERE] * 9, [NOWHERE] * 10])
        parts.append(Candidates(tokens, confidences, follows))
    modes = [GREEDY, SAMPLED, SAMPLED, GREEDY]
    together = calibration.calibrated_together(parts, modes)
    for part, mode, found in zip(parts, modes, together, strict=True):
        alone = calibration.calibrated(part, mode)
        assert (found.confidences == alone.confidences).all() and found.tokens is part.tokens
        assert found.guesses(0) == alone.guesses(0) and found.list_after(0, 0) == alone.list_after(0, 0)
