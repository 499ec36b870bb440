import pytest
import torch
from transformers import AttentionInterface

from medusa_dist.errors import ModelError
from medusa_dist.model.attention_bridge import IMPLEMENTATION, attention_context, check_attention, paged_attention
from medusa_dist.ops.attention.backend import AttentionParams

Q, KV = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
CPU = torch.device("cpu")


class Layer:
    layer_idx = 3


def test_attention_gets_rows_first_and_the_layers_params() -> None:
    seen = []

    def attend(*args: object) -> torch.Tensor:
        seen.append(args)
        return args[1]

    with attention_context.using(attend):
        out, weights = paged_attention(
            Layer(), Q, KV, KV, None, scaling=0.5, dropout=0.0, sliding_window=7, softcap=50.0, s_aux=Q[0, :, 0, 0]
        )
    layer, q, k, v, params = seen[0]
    assert (layer, params.scale, params.window, params.softcap, weights) == (3, 0.5, 7, 50.0, None)
    assert torch.equal(q, Q[0].transpose(0, 1)) and k.shape == v.shape == (5, 2, 8)
    assert params.sinks.shape == (4,) and torch.equal(out, Q.transpose(1, 2))


def test_scale_defaults_to_one_over_the_root_of_the_head_size() -> None:
    def attend(_layer: int, q: torch.Tensor, *rest: object) -> torch.Tensor:
        assert rest[2].scale == 8**-0.5
        return q

    with attention_context.using(attend):
        paged_attention(Layer(), Q, KV, KV, None)


@pytest.mark.parametrize("option", [{"alibi": Q}, {"position_bias": Q}, {"is_causal": False}, {"head_mask": Q}])
def test_options_that_change_the_result_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=f"Layer uses .*{next(iter(option))}"):
        paged_attention(Layer(), Q, KV, KV, None, **option)
    with pytest.raises(ModelError, match="attention_mask"):
        paged_attention(Layer(), Q, KV, KV, Q)


def test_attention_context_ends_with_its_block_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), attention_context.using(lambda *_: Q):
        raise ZeroDivisionError
    with pytest.raises(AssertionError, match="outside"):
        paged_attention(Layer(), Q, KV, KV, None)


def test_attention_is_registered_without_a_mask_function() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    assert AttentionInterface()[IMPLEMENTATION] is paged_attention
    assert IMPLEMENTATION not in ALL_MASK_ATTENTION_FUNCTIONS


@pytest.mark.parametrize(
    ("layers", "windows", "fault"),
    [
        ([0, 1], [None, None], None),
        ([0], [None, None], r"\.\.\. \(2\), got .*\.\.\. \(1\)$"),
        ([0, 0], [None, None], r"got \[\(0, \(4, 2, 8\), None\), \(0, "),
        ([0, 1], [None, 4], r"\(1, \(4, 2, 8\), 4\)\]\.\.\. \(2\), got .*\(1, \(4, 2, 8\), None\)"),
    ],
    ids=["as expected", "a layer missing", "a layer twice", "a window given by mask only"],
)
def test_attention_check_refuses_missing_or_misordered_layers_and_windows(
    layers: list[int], windows: list[int | None], fault: str | None
) -> None:
    def forward(*_: torch.Tensor) -> None:
        for layer in layers:
            attention_context.attend(layer, Q[0, :, :2].transpose(0, 1), KV[0, :, :2].transpose(0, 1),
                                     KV[0, :, :2].transpose(0, 1), AttentionParams(1.0))  # fmt: skip

    if fault is None:
        check_attention(forward, (4, 2, 8), windows, CPU)
    else:
        with pytest.raises(ModelError, match=f"attention is not supported: .*{fault}"):
            check_attention(forward, (4, 2, 8), windows, CPU)
    with pytest.raises(ModelError, match="attention is not supported"):
        check_attention(forward, (2, 1, 8), windows, CPU)


def test_model_that_fails_on_the_probe_is_refused() -> None:
    def forward(*_: torch.Tensor) -> None:
        raise RuntimeError("shape '[2, -1]' is invalid")

    with pytest.raises(ModelError, match=r"does not run after sharding.*invalid"):
        check_attention(forward, (4, 2, 8), [None], CPU)
