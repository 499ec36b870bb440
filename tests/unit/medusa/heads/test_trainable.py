"""Heads in training give what the modules that serve give, and every head learns."""

import pytest
import torch

from medusa_dist.medusa.heads.heads_file import HeadsFile, expected_shapes
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.heads.sequential import build_heads
from medusa_dist.medusa.heads.trainable import TrainableHeads
from tests.support.tiny_heads import HIDDEN, VOCAB, describe, tensors_for

pytestmark = pytest.mark.usefixtures("one_thread")
FORMS = [
    {"form": "hidden"},
    {"form": "hidden", "num_blocks": 2, "lm_head": "own", "bias": False},
    {"form": "hidden+embedding", "embedding_scale": 0.6, "draft_vocab_size": 19},
    {"form": "sequential", "width": 11, "embedding_scale": 0.6, "draft_vocab_size": 19},
    {"form": "sequential", "width": 11, "embedding_scale": 0.6, "tapped_layers": (-1, 2, 5)},
]


def made(fields: dict, scale: float | None) -> tuple[TrainableHeads, HeadsFile, torch.Tensor, torch.Tensor]:
    about = describe(**fields)
    generator = torch.Generator().manual_seed(2)
    known = about.draft_vocab_size or VOCAB
    rows, embedding = (torch.randn(n, HIDDEN, generator=generator) for n in (known, VOCAB))
    torch.manual_seed(0)
    heads = TrainableHeads(about, rows, embedding)
    tensors = tensors_for(about, 0.5 if scale is None else scale)
    if scale is not None:
        heads.load_state_dict({name: t for name, t in tensors.items() if name != "draft_vocab"})
    return heads, HeadsFile(about, tensors), rows, embedding


@pytest.mark.parametrize("fields", FORMS)
def test_trained_state_is_a_head_file_and_serves_the_same_logits(fields: dict) -> None:
    heads, file, rows, embedding = made(fields, 0.5)
    shapes = {name: shape for name, shape in expected_shapes(file.description).items() if name != "draft_vocab"}
    assert {name: tuple(t.shape) for name, t in heads.state_dict().items()} == shapes
    hidden, tokens = torch.randn(5, file.description.input_width), torch.randint(VOCAB, (5, 3))
    logits = list(heads(hidden, tokens))
    serving = build_heads(file, rows, torch.float32, torch.device("cpu"))
    if isinstance(serving, MedusaHeads):
        expected = serving(hidden, embedding[tokens[:, 0]]).unbind(1)
    else:
        expected, states = [], serving.start(hidden)
        for k in range(3):
            states, one = serving.step(states, embedding[tokens[:, k]])
            expected.append(one)
    for a, b in zip(logits, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", FORMS)
def test_untrained_heads_give_the_base_models_logits(fields: dict) -> None:
    heads, _, rows, _ = made(fields, None)
    hidden = torch.randn(4, heads.about.input_width)
    for logits in heads(hidden, torch.randint(VOCAB, (4, 3))):
        torch.testing.assert_close(logits, hidden[:, :HIDDEN] @ rows.T)


@pytest.mark.parametrize("fields", FORMS)
def test_loss_of_each_head_has_a_gradient_for_that_head_alone(fields: dict) -> None:
    for head in range(3):
        heads, _, _, _ = made(fields, 0.3)
        logits = list(heads(torch.randn(6, heads.about.input_width), torch.randint(VOCAB, (6, 3))))
        torch.log_softmax(logits[head], -1)[:, 0].sum().backward()
        touched = {name for name, p in heads.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if fields["form"] == "sequential":
            assert touched == {name for name, _ in heads.named_parameters()}
            assert ("taps.weight" in touched) == bool(heads.about.aux_layers)
        else:
            assert touched == {name for name, _ in heads.named_parameters() if name.startswith(f"heads.{head}.")}
        assert not heads.rows.requires_grad and not heads.embedding.requires_grad


def test_taps_start_at_zero_and_have_a_gradient_there() -> None:
    """They start at zero, and have a gradient there."""
    heads, _, _, _ = made(FORMS[-1], None)
    assert not heads.taps.weight.any()
    logits = next(iter(heads(torch.randn(6, heads.about.input_width), torch.randint(VOCAB, (6, 3)))))
    torch.log_softmax(logits, -1)[:, 0].sum().backward()
    assert (heads.taps.weight.grad.reshape(HIDDEN, 2, HIDDEN).abs().sum((0, 2)) > 0).all()
