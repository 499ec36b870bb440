import pytest
import torch
from transformers import CohereConfig, DeepseekV3Config, LlamaConfig, Olmo2Config

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.sharding_plans import (
    HeadShape,
    Style,
    check_tp_size,
    cut_of,
    legal_tp_sizes,
    match,
    plan_of,
    style_of,
    vocab_cut,
)
from medusa_dist.ops.tp_group import TPGroup
from tests.support.tiny_models import configs


@pytest.mark.parametrize("name", list(configs()))
def test_every_known_plan_cuts_attention_and_mlp(name: str) -> None:
    styles = set(plan_of(configs()[name]).values())
    assert styles & {Style.QUERY, Style.FUSED_QKV, Style.FUSED_BY_HEAD}
    assert Style.ATTENTION_OUT in styles
    assert styles & {Style.ROW, Style.EXPERTS_DOWN}


def test_legal_tp_sizes_follow_kv_heads_and_norms() -> None:
    known = configs()
    assert legal_tp_sizes(known["llama"]) == [1, 2, 3]
    assert legal_tp_sizes(known["gpt2"]) == [1, 2, 3, 4, 5, 6]
    assert legal_tp_sizes(Olmo2Config()) == [1]  # its norms span all heads
    assert legal_tp_sizes(DeepseekV3Config()) == [1]
    check_tp_size(Olmo2Config(), 1)


@pytest.mark.parametrize(
    ("config", "world", "words"),
    [
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=2), 3, "llama.* 2 key-value heads; legal: 1 to 2"),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=1), 2, "single key-value head; legal: 1"),
        (Olmo2Config(), 2, "olmo2.*q_proj: colwise_gather_output, which is not supported; legal: 1"),
    ],
)
def test_illegal_sizes_name_the_legal_ones(config: object, world: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_tp_size(config, world)


def test_unknown_architectures_have_no_plan() -> None:
    config = CohereConfig()
    config.base_model_tp_plan = None
    with pytest.raises(ModelError, match="no sharding plan is known for cohere"):
        plan_of(config)


def test_module_names_are_matched_whole() -> None:
    plan = plan_of(configs()["llama"])
    pattern = match(plan, "model")
    assert style_of("model.layers.11.self_attn.q_proj", plan, pattern) is Style.QUERY
    assert style_of("layers.0.mlp.down_proj", plan, pattern) is Style.ROW
    for other in ("model.layers.0.self_attn", "model.layers.x.self_attn.q_proj", "lm_head"):
        assert style_of(other, plan, pattern) is None


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("style", [s for s in Style if s is not Style.EXPERTS])
def test_cuts_of_all_ranks_cover_every_element_once(style: Style, world: int) -> None:
    config = configs()["llama"]  # 9 query and 3 key-value heads of 8
    whole = HeadShape.of(config, TPGroup())
    rows = {Style.QUERY: 72, Style.KEY_VALUE: 24, Style.FUSED_QKV: 120, Style.FUSED_BY_HEAD: 216}.get(style, 134)
    shape = (4, rows, 67) if style.name.startswith("EXPERTS") else (rows, 72)
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    seen: list[int] = []
    for rank in range(world):
        me = TPGroup(rank, world)
        cut = cut_of(style, shape, HeadShape.of(config, me), me)
        part = cut.apply(tensor)
        assert part.shape[cut.dim] == cut.size
        seen += part.flatten().tolist()
    assert sorted(seen) == tensor.flatten().tolist()
    assert whole.local() == {"num_heads": 9, "num_kv_heads": 3, "query_width": 72}


def test_fused_rows_keep_their_order_within_a_cut() -> None:
    config = configs()["llama"]
    me = TPGroup(1, 2)  # the last group: query heads 6..8, key-value head 2
    heads = HeadShape.of(config, me)
    assert cut_of(Style.FUSED_QKV, (120, 72), heads, me).ranges == ((48, 72), (88, 96), (112, 120))
    assert cut_of(Style.GATE_UP, (134, 72), heads, me).ranges == ((34, 67), (101, 134))


def test_layer_whose_rows_are_not_heads_is_refused() -> None:
    me = TPGroup(0, 2)
    with pytest.raises(ModelError, match="144 rows cannot be sharded by heads"):  # a gated query of twice the width
        cut_of(Style.QUERY, (144, 72), HeadShape.of(configs()["llama"], me), me)


def test_vocabulary_shards_are_padded_to_equal_size() -> None:
    parts = [vocab_cut(97, TPGroup(rank, 2)).apply(torch.arange(97.0)[:, None]) for rank in range(2)]
    assert [p.shape for p in parts] == [(49, 1), (49, 1)]
    assert torch.cat(parts).flatten().tolist() == [*range(97), 0]
    assert vocab_cut(97, TPGroup()) is None
