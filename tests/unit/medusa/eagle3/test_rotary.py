"""Rotary positions of draft layers: against transformers' own."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.rotary import Rotary, rotate

KINDS: dict[str, dict] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, all": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 0.9,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
def test_rotation_is_that_of_transformers(kind: str, nested: bool) -> None:
    common = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "max_position_embeddings": 512}
    parameters = {"rope_type": "default"} | KINDS[kind] | {"rope_theta": 500.0}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**common, rope_parameters=dict(parameters)))
    published = (
        {"rope_parameters": parameters} if nested else {"rope_theta": 500.0, "rope_scaling": KINDS[kind] or None}
    )
    frequencies, factor = Rotary.of_config(common | published).frequencies(32)
    x, positions = torch.randn(9, 2, 32), torch.tensor([0, 1, 2, 3, 17, 63, 64, 200, 511])
    cosines, sines = theirs(x[None], positions[None])
    wanted, _ = apply_rotary_pos_emb(x[None], x[None], cosines, sines, unsqueeze_dim=2)
    torch.testing.assert_close(rotate(x, positions, frequencies, factor), wanted[0], atol=2e-5, rtol=1e-4)


def test_kinds_that_depend_on_the_length_are_refused_by_name() -> None:
    with pytest.raises(HeadsError, match="rotary positions of type 'dynamic'; those served are default, linear"):
        Rotary.of_config({"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    with pytest.raises(HeadsError, match="'llama3' without low_freq_factor"):
        Rotary.of_config({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}})
