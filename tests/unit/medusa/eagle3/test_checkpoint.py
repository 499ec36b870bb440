"""Published EAGLE-3 heads: what their config says, and one readable error for each way in which they do not fit."""

import pytest
import torch

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File, eagle3_names
from medusa_dist.medusa.eagle3.config import parse_eagle3_config
from tests.support.tiny_eagle3 import FORMS, HIDDEN, KNOWN, LAYER, OFFICIAL, SPECULATORS, VOCAB, checkpoint, in_memory


def read(config: dict, tensors: dict[str, torch.Tensor]) -> Eagle3File:
    return Eagle3File(parse_eagle3_config(config), {o: tensors[t] for o, t in eagle3_names(list(tensors)).items()})


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_has_the_same_names_after_reading(form: str) -> None:
    file = in_memory(form)
    assert {"fc.weight", "norm.weight", "lm_head.weight", "layers.0.self_attn.q_proj.weight"} <= set(file.tensors)
    assert file.tensors["layers.0.self_attn.q_proj.weight"].shape == (24, 2 * HIDDEN)
    assert file.draft_vocab is not None and file.draft_vocab.shape == (KNOWN,)
    assert file.num_known == KNOWN


def test_tapped_layers_are_counted_as_each_project_counts_them() -> None:
    """2, n // 2, n - 3 are hidden states before a layer, so our layers are one less."""
    assert in_memory("official").aux_layers(32) == (1, 15, 28)
    assert in_memory("specforge").aux_layers(32) == (0, 2, 3)
    assert in_memory("speculators").aux_layers(32) == (0, 1, 3)
    four = in_memory("speculators", eagle_aux_hidden_state_layer_ids=[2, 16, 29, 32])
    assert four.aux_layers(32) == (1, 15, 28, 31) and four.tensors["fc.weight"].shape == (HIDDEN, 4 * HIDDEN)


def test_variants_of_the_norms_are_read_from_the_config() -> None:
    assert not parse_eagle3_config(OFFICIAL).norm_before_residual
    assert parse_eagle3_config(SPECULATORS).norm_before_residual
    about = in_memory("speculators, qwen3").config
    assert (about.qk_norm, about.norm_before_fc, about.window) == (True, True, 5)
    about = in_memory("specforge 3.1").config
    assert (about.fc_norm, about.norm_output) == (True, True)


def test_tensors_that_are_missing_or_too_many_are_named() -> None:
    config, tensors = checkpoint("official")
    del tensors["midlayer.hidden_norm.weight"], tensors["d2t"]
    with pytest.raises(HeadsError, match=r"without the tensors layers\.0\.hidden_norm\.weight, d2t"):
        read(config, tensors)
    config, tensors = checkpoint("official")
    with pytest.raises(HeadsError, match=r"EAGLE-3 heads have no layers\.0\.self_attn\.sinks"):
        read(config, tensors | {"midlayer.self_attn.sinks": torch.zeros(4)})
    with pytest.raises(HeadsError, match=r"tensor norm\.weight has shape \(3,\), but config\.json implies \(16,\)"):
        read(config, tensors | {"norm.weight": torch.zeros(3)})
    with pytest.raises(HeadsError, match=r"model\.fc\.weight are both fc\.weight|fc\.weight are both"):
        read(config, tensors | {"model.fc.weight": tensors["fc.weight"]})
    with pytest.raises(HeadsError, match=r"fc\.weight is torch\.float8_e4m3fn; quantized"):
        read(config, tensors | {"fc.weight": tensors["fc.weight"].to(torch.float8_e4m3fn)})


def test_copies_of_the_base_for_training_are_passed_over() -> None:
    config, tensors = checkpoint("speculators")
    file = read(config, tensors | {"verifier_lm_head.weight": torch.zeros(3), "verifier_norm.weight": torch.zeros(3)})
    assert not [name for name in file.tensors if name.startswith("verifier")]


def test_a_vocabulary_map_out_of_range_is_refused() -> None:
    config, tensors = checkpoint("official")
    wrong = tensors["d2t"].clone()
    wrong[7] = VOCAB
    with pytest.raises(HeadsError, match=rf"d2t maps row 7 to token {VOCAB + 7}, outside the vocabulary of {VOCAB}"):
        read(config, tensors | {"d2t": wrong})
    wrong[7] = tensors["d2t"][6] - 1
    with pytest.raises(HeadsError, match="two rows to one token"):
        read(config, tensors | {"d2t": wrong})
    with pytest.raises(HeadsError, match="t2d and d2t disagree"):
        read(config, tensors | {"t2d": ~tensors["t2d"]})


def test_heads_without_output_rows_or_embedding_take_those_of_the_base() -> None:
    config, tensors = checkpoint("official", draft_vocab_size=None)
    del tensors["lm_head.weight"], tensors["embed_tokens.weight"]
    file = read(config, tensors)
    assert file.draft_vocab is None and file.num_known == VOCAB
    file.check_base(HIDDEN, VOCAB, None, False)
    with pytest.raises(HeadsError, match=r"16 wide, so the model's embedding and lm_head, 24 wide, cannot stand in"):
        file.check_base(24, VOCAB, None, False)


def test_another_base_is_refused() -> None:
    file = in_memory("speculators")
    file.check_base(HIDDEN, VOCAB, "any", False)
    file.check_layers(5, HIDDEN)
    with pytest.raises(HeadsError, match=r"made for 'tiny/base' with vocabulary 31, but the model has 32"):
        file.check_base(HIDDEN, 32, None, False)
    with pytest.raises(HeadsError, match=r"made for 'tiny/base' with hidden size 16, but the model has 20"):
        file.check_layers(5, 20)
    with pytest.raises(HeadsError, match=r"read the outputs of layers \[0, 1, 3\], but the model's are 0 to 2"):
        file.check_layers(3, HIDDEN)
    with pytest.raises(HeadsError, match=r"read the outputs of layers \[1, 1, 0\], but the model's are 0 to 3"):
        in_memory("official").check_layers(4, HIDDEN)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (OFFICIAL | {"num_hidden_layers": 2}, "num_hidden_layers: 2 are not served; served is 1"),
        (OFFICIAL | {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        (OFFICIAL | {"quantization_config": {"bits": 4}}, "quantization_config: a quantized form"),
        (OFFICIAL | {"eagle_config": {"use_aux_hidden_state": False}}, "eagle_config.use_aux_hidden_state: False"),
        (OFFICIAL | {"model_type": "llama4_text"}, "layer of type 'llama4_text'"),
        (OFFICIAL | {"hidden_size": None}, "must have hidden_size as a positive number, and has None"),
        (
            SPECULATORS | {"transformer_layer_config": LAYER | {"intermediate_size": "many"}},
            "transformer_layer_config.intermediate_size as a positive number, and has 'many'",
        ),
        ({k: v for k, v in SPECULATORS.items() if k != "norm_before_residual"}, "lacks norm_before_residual"),
        (SPECULATORS | {"norm_before_fc": True, "fc_norm": True}, "exclude each other"),
        (SPECULATORS | {"eagle_aux_hidden_state_layer_ids": [0, 2]}, "hidden state 0, cannot be tapped"),
        (SPECULATORS | {"eagle_aux_hidden_state_layer_ids": [3, 2]}, "they must ascend"),
    ],
)
def test_variants_that_are_not_served_are_refused_by_name(config: dict, told: str) -> None:
    with pytest.raises(HeadsError) as caught:
        parse_eagle3_config(config)
    assert told in str(caught.value)
