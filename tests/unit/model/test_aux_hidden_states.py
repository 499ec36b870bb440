"""States after inner layers, against transformers' own. test_load.py holds several ranks against one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.aux_hidden_states import decoder_layers
from medusa_dist.model.load import load_model
from medusa_dist.ops.tp_group import TPGroup
from tests.support.loaded_models import CPU, NAMES, ROWS, load, run
from tests.support.tiny_models import save_tiny, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[torch.Tensor]]]:
    """name -> (folder, what transformers has after each of the two layers [4, W] at ROWS)."""
    made = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        theirs = save_tiny(name, folder)
        seen: list[torch.Tensor] = []
        # hidden_states holds the last layer's state behind the final norm only: that one is read at the layer.
        last = decoder_layers(theirs, 2)[1]
        hook = last.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        with torch.inference_mode():
            first = theirs(input_ids=tokens()[None], output_hidden_states=True).hidden_states[1]
        hook.remove()
        second = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        made[name] = (folder, [first[0, ROWS], second[0, ROWS]])
    return made


@pytest.mark.parametrize("name", NAMES)
def test_aux_hidden_states_of_one_rank_equal_those_of_transformers(
    zoo: dict[str, tuple[Path, list[torch.Tensor]]], name: str
) -> None:
    folder, states = zoo[name]
    logits, hidden = run(load(folder))
    for aux_layers in ((0,), (1,), (0, 1)):
        model = load(folder, aux_layers=aux_layers)
        tapped_logits, read = run(model)
        assert torch.equal(tapped_logits, logits) and torch.equal(read[:, : model.hidden_size], hidden)
        expected = torch.cat([states[layer] for layer in aux_layers], 1)
        assert read.shape[1] == model.hidden_size + len(aux_layers) * model.layer_width
        assert (read[:, model.hidden_size :] - expected).abs().max() < 1e-4 < expected.abs().max()


def test_aux_layer_that_the_model_lacks_is_refused(zoo: dict[str, tuple[Path, list[torch.Tensor]]]) -> None:
    with pytest.raises(ConfigError, match=r"aux layers \[0, 2\] were requested, but the model has layers 0 to 1"):
        load_model(zoo["llama"][0], dtype=torch.float32, device=CPU, parallel=TPGroup(), aux_layers=(0, 2))


def test_model_without_a_list_of_its_layers_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])  # as many, but no layers

    with pytest.raises(ModelError, match="Odd has no list of its 2 layers"):
        decoder_layers(Odd(), 2)
