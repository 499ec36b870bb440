"""The heads' forward pass against a loop over heads and blocks, in every form."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from tests.support.tiny_heads import HIDDEN, VOCAB, random_heads

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
ROWS = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(7))  # the base's lm_head


def naive(file: HeadsFile, hidden: Tensor, embedding: Tensor, rows: Tensor) -> Tensor:
    """One head, one block, one sequence at a time: [B, K, D]."""
    about = file.description
    out = []
    for h, e in zip(hidden, embedding, strict=True):
        for k in range(about.num_heads):
            state = h
            for block in range(about.num_blocks):
                name = f"heads.{k}.blocks.{block}"
                x = state
                if block == 0 and about.form == "hidden+embedding":
                    x = torch.cat([h, about.embedding_scale * e])
                y = file.tensors[f"{name}.weight"] @ x
                if about.bias:
                    y = y + file.tensors[f"{name}.bias"]
                state = state + F.silu(y)
            weight = rows if about.lm_head == "shared" else file.tensors[f"heads.{k}.lm_head.weight"]
            logits = weight @ state * about.logit_scale
            cap = about.logit_softcap
            out.append(logits if cap is None else cap * torch.tanh(logits / cap))
    return torch.stack(out).view(len(hidden), about.num_heads, -1)


FORMS = list(product(["hidden", "hidden+embedding"], ["shared", "own"], [1, 2, 3], [True, False]))


@pytest.mark.parametrize(("form", "lm_head", "num_blocks", "bias"), FORMS)
@pytest.mark.parametrize("draft_vocab_size", [None, 17])
def test_heads_equal_a_loop_over_heads_and_blocks(
    form: str, lm_head: str, num_blocks: int, bias: bool, draft_vocab_size: int | None
) -> None:
    file = random_heads(
        form=form,
        lm_head=lm_head,
        num_blocks=num_blocks,
        bias=bias,
        draft_vocab_size=draft_vocab_size,
        embedding_scale=1.7,
    )
    known = ROWS if file.draft_vocab is None else ROWS[file.draft_vocab]
    heads = MedusaHeads(file, known if lm_head == "shared" else None, torch.float32, CPU)
    hidden, embedding = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    assert heads.needs_embedding is (form == "hidden+embedding") and heads.num_heads == 3
    for count in (1, 5):
        got = heads(hidden[:count], embedding[:count] if heads.needs_embedding else None)
        assert got.shape == (count, 3, draft_vocab_size or VOCAB) and got.dtype == torch.float32
        assert torch.allclose(got, naive(file, hidden[:count], embedding[:count], known), atol=1e-4)
    ids = heads.token_ids
    assert (ids is None) if draft_vocab_size is None else torch.equal(ids, file.draft_vocab)


def test_logits_are_scaled_before_the_softcap() -> None:
    file = random_heads(logit_scale=0.25, logit_softcap=2.0)
    hidden = torch.randn(4, HIDDEN)
    got = MedusaHeads(file, ROWS, torch.float32, CPU)(hidden, None)
    assert got.abs().max() <= 2.0
    assert torch.allclose(got, naive(file, hidden, hidden, ROWS), atol=1e-4)


def test_half_precision_heads_give_float_logits() -> None:
    file = random_heads(num_blocks=2)
    hidden = torch.randn(4, HIDDEN)
    got = MedusaHeads(file, ROWS, torch.bfloat16, CPU)(hidden.bfloat16(), None)
    expected = naive(file, hidden, hidden, ROWS)
    assert got.dtype == torch.float32 and (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_heads_know_their_device_without_parameters() -> None:
    """Weights are buffers, or packed away; who needs the device cannot look at parameters."""
    for device in (CPU, torch.device("meta")):
        assert MedusaHeads(random_heads(), ROWS, torch.float32, device).device == device


def test_shared_lm_head_requires_output_rows() -> None:
    with pytest.raises(AssertionError, match="shared output rows"):
        MedusaHeads(random_heads(), None, torch.float32, CPU)
