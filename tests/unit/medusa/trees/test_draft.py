"""guess against one head of one sequence at a time."""

import pytest
import torch

from medusa_dist.medusa.trees.draft import DRAFT_TOP_K, guess

pytestmark = pytest.mark.usefixtures("one_thread")


def naive(logits: torch.Tensor, temperature: float, noise: torch.Tensor | None) -> tuple[list[int], list[float]]:
    """logits, noise: [D] of one head of one sequence."""
    if temperature == 0:
        chances = torch.softmax(logits, -1)
        best = sorted(range(len(logits)), key=lambda i: -float(logits[i]))[:DRAFT_TOP_K]
        return best, [float(chances[i]) for i in best]
    scores = logits / temperature + noise
    best = sorted(range(len(scores)), key=lambda i: -float(scores[i]))[:DRAFT_TOP_K]
    return best, torch.softmax(scores[best], -1).tolist()


@pytest.mark.parametrize("width", [3, 10, 97])
@pytest.mark.parametrize("temperatures", [[0.0, 0.0, 0.0], [0.7, 1.0, 2.0], [0.0, 0.5, 0.0]])
def test_guesses_equal_those_of_one_head_at_a_time(temperatures: list[float], width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = 2 * torch.randn(3, 4, width, generator=generator)
    noise = torch.randn(3, 4, width, generator=generator) if any(temperatures) else None
    columns, confidences = guess(logits, torch.tensor(temperatures), noise)
    assert columns.shape == confidences.shape == (3, 4, min(DRAFT_TOP_K, width))
    for b, temperature in enumerate(temperatures):
        for k in range(4):
            ids, chances = naive(logits[b, k], temperature, None if noise is None else noise[b, k])
            assert columns[b, k].tolist() == ids
            assert confidences[b, k].tolist() == pytest.approx(chances, abs=1e-5)


def test_confidences_fall_with_the_guess_index() -> None:
    """best_tree relies on it."""
    generator = torch.Generator().manual_seed(1)
    logits, noise = (3 * torch.randn(5, 3, 50, generator=generator) for _ in range(2))
    _, confidences = guess(logits, torch.tensor([0.0, 0.1, 1.0, 10.0, 0.0]), noise)
    assert (confidences[..., 1:] <= confidences[..., :-1]).all()
    assert ((confidences >= 0) & (confidences <= 1)).all()


def test_noise_of_greedy_rows_is_ignored() -> None:
    logits = torch.randn(1, 2, 20)
    without = guess(logits, torch.zeros(1), None)
    for one, other in zip(guess(logits, torch.zeros(1), 100 * torch.randn(1, 2, 20)), without, strict=True):
        assert torch.equal(one, other)
