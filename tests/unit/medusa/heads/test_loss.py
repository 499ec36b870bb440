"""Losses against their formulas, place by place."""

import math

import pytest
import torch

from medusa_dist.medusa.heads.loss import OUTSIDE, Targets, head_loss, total_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def example() -> tuple[torch.Tensor, Targets]:
    """Four places, seven tokens known; some of the base's tokens and one label are outside."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 7, generator=generator)
    columns = torch.tensor([[0, 3, OUTSIDE], [6, OUTSIDE, 1], [2, 4, 5], [OUTSIDE, OUTSIDE, OUTSIDE]])
    chances = torch.tensor([[0.5, 0.3, 0.1], [0.4, 0.4, 0.1], [0.9, 0.05, 0.02], [0.6, 0.2, 0.1]])
    return logits, Targets(columns, chances, torch.tensor([3, OUTSIDE, 2, 0]))


def naive(kind: str) -> float:
    logits, targets = example()
    total = 0.0
    for row, columns, chances, label in zip(logits, targets.columns, targets.chances, targets.labels, strict=True):
        q = torch.softmax(row, -1)
        pairs = [(float(p), float(q[c])) for c, p in zip(columns, chances, strict=True) if c != OUTSIDE]
        kl = -sum(p * math.log(x) for p, x in pairs)
        if kind == "ce":
            total += 0.0 if label == OUTSIDE else -math.log(float(q[label]))
        elif kind == "kl":
            total += kl
        else:
            total += 0.5 * kl - (0.5 * math.log(sum(min(p, x) for p, x in pairs)) if pairs else 0.0)
    return total / 4


@pytest.mark.parametrize("kind", ["kl", "ce", "lk"])
def test_loss_equals_its_formula_position_by_position(kind: str) -> None:
    logits, targets = example()
    assert float(head_loss(logits, targets, kind)) == pytest.approx(naive(kind), rel=1e-5)


@pytest.mark.parametrize("kind", ["kl", "lk"])
def test_loss_is_least_where_head_and_base_agree(kind: str) -> None:
    chances = torch.tensor([[0.6, 0.3, 0.1]])
    targets = Targets(torch.tensor([[0, 1, 2]]), chances, torch.tensor([0]))
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        head_loss(logits, targets, kind).backward()
        optimizer.step()
    assert torch.softmax(logits, -1)[0].tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_loss_of_no_positions_is_zero() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    empty = Targets(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    loss = head_loss(logits, empty, "kl")
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_later_heads_weigh_less_in_the_total_loss() -> None:
    assert float(total_loss([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)], 0.5)) == 1 + 1 + 1
