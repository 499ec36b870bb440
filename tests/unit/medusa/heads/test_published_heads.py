"""Names of published heads: every layout, and what is refused."""

import pytest

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.published_heads import check_config, recognise

HEADS, BLOCKS = 3, 2


def medusa(prefix: str = "", own: bool = True, bias: bool = True) -> list[str]:
    names = []
    for h in range(HEADS):
        for b in range(BLOCKS):
            names += [f"{prefix}{h}.{b}.linear.{what}" for what in (("weight", "bias") if bias else ("weight",))]
        names += [f"{prefix}{h}.{BLOCKS}.weight"] if own else []
    return names


def tensorrt() -> list[str]:
    blocks = [
        f"medusa_heads.{h}.medusa_layers.{b}.linear.{w}" for h in range(3) for b in (0, 1) for w in ("weight", "bias")
    ]
    return [*blocks, *(f"medusa_heads.{h}.lm_head.weight" for h in range(3))]


def vllm() -> list[str]:
    return [
        *(f"blocks.{h}.layers.{b}.{what}" for h in range(3) for b in (0, 1) for what in ("weight", "bias")),
        *(f"lm_heads.{h}.weight" for h in range(3)),
    ]


WHOLE_MODEL = [*medusa("medusa_head."), "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("names", "layout", "last"),
    [
        (medusa(), "medusa", "2.2.weight"),
        (medusa("medusa_head."), "medusa", "medusa_head.2.2.weight"),
        (medusa("model.medusa_heads."), "medusa", "model.medusa_heads.2.2.weight"),
        (WHOLE_MODEL, "medusa", "medusa_head.2.2.weight"),
        (tensorrt(), "tensorrt-llm", "medusa_heads.2.lm_head.weight"),
        (vllm(), "vllm", "lm_heads.2.weight"),
    ],
)
def test_every_published_layout_is_recognised(names: list[str], layout: str, last: str) -> None:
    found = recognise(names)
    assert (found.layout, found.num_heads, found.num_blocks) == (layout, HEADS, BLOCKS)
    assert found.has_bias and found.has_own_outputs and found.token_map is None
    assert len(found.names) == HEADS * (2 * BLOCKS + 1)
    assert found.names["heads.2.lm_head.weight"] == last
    assert len(set(found.names.values())) == len(found.names)


def test_missing_output_rows_biases_and_token_map_are_recognised() -> None:
    found = recognise(medusa(own=False, bias=False))
    assert not found.has_own_outputs and not found.has_bias and len(found.names) == HEADS * BLOCKS
    assert recognise([*vllm()[:12], "token_map"]).token_map == "token_map"


def test_block_stored_once_counts_as_often_as_it_is_repeated() -> None:
    """ModelOpt's heads are one block, twice in a row; safetensors keeps the first name of what is the same."""
    names = [name for name in medusa("medusa_heads.") if ".1.linear" not in name]
    found = recognise(names)
    assert (found.num_heads, found.num_blocks, found.has_bias, found.has_own_outputs) == (HEADS, BLOCKS, True, True)
    assert (
        found.names["heads.2.blocks.1.bias"] == found.names["heads.2.blocks.0.bias"] == "medusa_heads.2.0.linear.bias"
    )
    check_config({"medusa": {"num_medusa_heads": HEADS, "num_medusa_layers": BLOCKS}}, found)
    with pytest.raises(HeadsError, match="num_medusa_layers: 1, but the tensors hold 2 blocks"):
        check_config({"medusa": {"num_medusa_layers": 1}}, found)
    with pytest.raises(HeadsError, match="num_medusa_heads: 5"):
        check_config({"num_medusa_heads": 5}, found)


def test_single_output_matrix_of_several_heads_is_the_bases() -> None:
    found = recognise([*vllm()[:12], "lm_heads.0.weight"])
    assert found.num_heads == 3 and not found.has_own_outputs and len(found.names) == 12
    lone = recognise(["blocks.0.layers.0.weight", "lm_heads.0.weight"])  # one head, with rows of its own
    assert lone.has_own_outputs


def test_one_block_followed_by_output_rows_is_recognised() -> None:
    found = recognise(["0.0.linear.weight", "0.0.linear.bias", "0.1.weight"])
    assert (found.num_heads, found.num_blocks) == (1, 1) and found.names["heads.0.lm_head.weight"] == "0.1.weight"


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["model.embed_tokens.weight"], r"match no known layout .*: model\.embed_tokens\.weight"),
        ([], "match no known layout .*: none"),
        ([n for n in medusa() if not n.startswith("1.")], r"heads \[0, 2\], which are not 0\.\.1"),
        ([n for n in medusa() if not n.startswith("1.0")], r"head 1 has blocks \[1\], others have 0\.\.1"),
        ([n for n in medusa() if n != "2.2.weight"], r"missing is heads\.2\.lm_head\.weight"),
        ([n for n in medusa() if n != "2.1.linear.bias"], r"missing is heads\.2\.blocks\.1\.bias"),
        ([n for n in medusa() if n != "0.1.linear.weight"], r"missing is heads\.0\.blocks\.1\.weight"),
        ([*medusa(), *medusa("medusa_head.")], "two sets of heads"),
        ([*medusa(own=False), "0.3.weight", "1.3.weight", "2.3.weight"], "after 3 blocks, but a head has 2"),
        ([*(n for n in medusa() if n != "2.2.weight"), "2.3.weight"], "after 3 blocks, but a head has 2"),
    ],
)
def test_incomplete_or_unknown_tensor_names_are_refused(names: list[str], error: str) -> None:
    with pytest.raises(HeadsError, match=error):
        recognise(names)


def test_config_with_other_head_or_block_counts_is_refused() -> None:
    found = recognise(medusa())
    check_config({}, found)
    check_config({"medusa_num_heads": 3, "medusa_num_layers": 2, "num_heads": 32, "num_hidden_layers": 28}, found)
    with pytest.raises(HeadsError, match=r"medusa_num_heads: 2, but the tensors hold 3 heads.*--trust-tensors"):
        check_config({"medusa_num_heads": 2}, found)
    with pytest.raises(HeadsError, match=r"medusa_num_layers: 1, but the tensors hold 2 blocks per head"):
        check_config({"medusa_num_layers": 1}, found)
    with pytest.raises(HeadsError, match=r"num_hidden_layers: 1"):
        check_config({"model_type": "medusa", "num_heads": 3, "num_hidden_layers": 1}, found)
