"""The prefix layer: as transformers computes it, as it is trained, and what of a file it needs."""

import pytest
import torch

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.heads_file import HeadsFile, expected_shapes
from medusa_dist.medusa.heads.prefix_layer import PrefixLayer
from medusa_dist.medusa.heads.sequential import SequentialHeads
from medusa_dist.medusa.heads.trainable import TrainableHeads
from tests.support.prefix_oracle import prefix_states
from tests.support.tiny_heads import VOCAB, describe, random_heads, tensors_for

CPU = torch.device("cpu")
HIDDEN = 16  # transformers wants a multiple of the number of heads
BASE = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB)
PREFIX = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "inner": 10}
FIELDS = {"form": "sequential", "width": 7, "prefix": PREFIX, "base": BASE}
TAPS = [(-1,), (-1, 0, 4)]


def causal(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[T, heads, d] each, one text."""
    q, k, v = (part.transpose(0, 1)[None] for part in (queries, keys, values))
    scaled = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return scaled[0].transpose(0, 1)


@pytest.mark.parametrize("tapped_layers", TAPS)
def test_layer_equals_transformers_llama_layer(tapped_layers: tuple[int, ...]) -> None:
    file = random_heads(tapped_layers=tapped_layers, **FIELDS)
    layer = PrefixLayer(file, torch.float32, CPU)
    states = torch.randn(9, file.description.input_width)
    x = layer.fuse(states)
    found = layer.finish(x, causal(*layer.project(x, torch.arange(9))))
    torch.testing.assert_close(found, prefix_states(file, states), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tapped_layers", TAPS)
def test_trained_state_is_a_head_file_and_serves_the_same_logits(tapped_layers: tuple[int, ...]) -> None:
    """Two texts at once; the heads predict after some of their rows."""
    about = describe(tapped_layers=tapped_layers, **FIELDS)
    rows, embedding = torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN)
    heads, tensors = TrainableHeads(about, rows, embedding), tensors_for(about)
    assert {name: tuple(t.shape) for name, t in heads.state_dict().items()} == expected_shapes(about)
    heads.load_state_dict(tensors)
    hidden, tokens = torch.randn(12, about.input_width), torch.randint(VOCAB, (4, 3))
    where = torch.tensor([1, 4, 5, 11])
    trained = list(heads(hidden, tokens, ([5, 7], where)))
    file = HeadsFile(about, tensors)
    serving = SequentialHeads(file, rows, torch.float32, CPU)
    whole = torch.cat([prefix_states(file, text) for text in hidden.split([5, 7])])
    states = serving.start(whole[where])
    for k, logits in enumerate(trained):
        states, expected = serving.step(states, embedding[tokens[:, k]])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_untrained_heads_nearly_say_what_the_model_says() -> None:
    about = describe(tapped_layers=(-1, 0), **FIELDS)
    rows = torch.randn(VOCAB, HIDDEN)
    hidden = torch.nn.functional.rms_norm(torch.randn(6, about.input_width), (about.input_width,))
    heads = TrainableHeads(about, rows, torch.zeros(VOCAB, HIDDEN), hidden_rms=1.0)
    for logits in heads(hidden, torch.zeros(6, 3, dtype=torch.int64), ([6], torch.arange(6))):
        theirs = hidden[:, :HIDDEN] @ rows.T
        assert torch.corrcoef(torch.stack([logits.flatten(), theirs.flatten()]))[0, 1] > 0.95


def test_file_without_a_tensor_of_the_layer_is_refused() -> None:
    about = describe(**FIELDS)
    tensors = {name: t for name, t in tensors_for(about).items() if name != "prefix.o_proj.weight"}
    with pytest.raises(HeadsError, match=r"tensor prefix\.o_proj\.weight is missing"):
        HeadsFile(about, tensors)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"form": "hidden", "prefix": PREFIX}, "prefix belongs to the form 'sequential', not to 'hidden'"),
        ({**FIELDS, "prefix": PREFIX | {"num_kv_heads": 3}}, "num_heads 4 is no multiple of num_kv_heads 3"),
    ],
)
def test_description_that_cannot_be_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        describe(**fields)
