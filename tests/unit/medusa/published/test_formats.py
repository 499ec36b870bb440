"""Recognition of published heads, by config.json and by tensor names."""

import pytest

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.published.formats import SERVED, Format, detect, require_served
from tests.support.tiny_eagle3 import FORMS, checkpoint

LAYER = [f"layers.0.{part}.weight" for part in ("self_attn.q_proj", "mlp.up_proj", "post_attention_layernorm")]
CASES: list[tuple[Format, dict, list[str]]] = [
    (Format.EAGLE, {"model_type": "llama"}, ["embed_tokens.weight", "fc.weight", "fc.bias", *LAYER]),
    (Format.EAGLE, {"speculators_model_type": "eagle"}, ["fc.weight", *LAYER]),
    (Format.P_EAGLE, {"speculators_model_type": "peagle"}, []),
    (Format.P_EAGLE, {"architectures": ["LlamaForCausalLMEagle3"]}, ["fc.weight", "midlayer.x", "mask_hidden"]),
    (Format.DFLASH, {"architectures": ["DFlashDraftModel"], "dflash_config": {}}, ["fc.weight", *LAYER]),
    (Format.DFLASH, {}, ["fc.weight", "hidden_norm.weight", *LAYER]),
    (Format.DSPARK, {"speculators_model_type": "dspark"}, []),
    (Format.MTP, {"architectures": ["DeepseekV3ForCausalLM"]}, ["model.layers.61.eh_proj.weight"]),
    (Format.MTP, {}, ["mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight"]),
    (Format.MTP, {}, ["model.mtp_layers.0.input_proj.weight"]),
    (Format.MLP_SPECULATOR, {"model_type": "mlp_speculator"}, []),
    (Format.MEDUSA, {"medusa_num_heads": 3}, ["0.0.linear.weight", "0.1.weight"]),
    (Format.MEDUSA, {}, ["medusa_head.0.0.linear.weight", "medusa_head.0.0.linear.bias"]),
    (Format.MEDUSA, {"model_type": "medusa"}, ["blocks.0.layers.0.weight"]),
    (
        Format.LANGUAGE_MODEL,
        {"architectures": ["LlamaForCausalLM"]},
        ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"],
    ),
]


@pytest.mark.parametrize(("wanted", "config", "names"), CASES)
def test_forms_are_recognised_and_those_not_served_are_refused_by_name(
    wanted: Format, config: dict, names: list[str]
) -> None:
    found = detect(config, names)
    assert found is wanted
    if wanted in SERVED:
        require_served(found)
        return
    with pytest.raises(HeadsError, match="which is not served: it needs ") as caught:
        require_served(found)
    assert f"these are {wanted.value}," in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seen", ["config.json", "tensors", "both"])
def test_every_eagle3_checkpoint_is_recognised(form: str, seen: str) -> None:
    config, tensors = checkpoint(form)
    config = {} if seen == "tensors" else config
    assert detect(config, [] if seen == "config.json" else list(tensors)) is Format.EAGLE3


def test_what_is_unknown_is_refused_with_some_of_its_names() -> None:
    with pytest.raises(HeadsError, match=r"the tensors \(a, b\) are of a known form: Medusa, EAGLE-3, EAGLE-1/2"):
        detect({}, ["b", "a"])
    with pytest.raises(HeadsError, match="speculators_model_type 'new'; known forms are Medusa"):
        detect({"speculators_model_type": "new"}, [])
