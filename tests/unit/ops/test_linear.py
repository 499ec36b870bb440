import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medusa_dist.ops.cpu import packed_weights as ops
from medusa_dist.ops.cpu.packed_weights import PackedWeight
from medusa_dist.ops.linear import Linear, VocabEmbedding
from medusa_dist.ops.tp_group import TPGroup


def layer(prepack: bool, dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(0)
    weight, b = torch.randn(67, 96, dtype=dtype), torch.randn(67, dtype=dtype)
    return Linear(weight, b if bias else None, prepack), torch.randn(40, 96, dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_packed_linear_equals_plain_linear(dtype: torch.dtype, tolerance: float, bias: bool) -> None:
    packed, x = layer(True, dtype, bias)
    plain, _ = layer(False, dtype, bias)
    # oneDNN multiplies bfloat16 only on CPUs with AVX-512; elsewhere F.linear runs, and the results still agree.
    can = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert packed.is_packed == can and (packed.weight is None) == can
    assert not plain.is_packed and plain.weight is not None
    for shape in ((1, 1, 96), (1, 40, 96), (40, 96)):
        rows = x.flatten()[: torch.Size(shape).numel()].view(shape)
        assert packed(rows).shape == (*shape[:-1], 67)
        assert (packed(rows) - plain(rows)).abs().max() <= tolerance


@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_rows_do_not_depend_on_the_batch_size(bias: bool) -> None:
    packed, x = layer(True, bias=bias)
    whole = packed(x)
    for count in range(2, 40):
        assert torch.equal(packed(x[:count]), whole[:count]), count


def test_unpackable_dtype_falls_back_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    ops._log_refusal.cache_clear()
    for _ in range(2):
        plain = Linear(torch.eye(4, dtype=torch.float16), None, prepack=True)
    assert not plain.is_packed and plain(torch.ones(1, 4, dtype=torch.float16)).tolist() == [[1.0] * 4]
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "float16" in caplog.text


def test_missing_mkldnn_operator_falls_back_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Gone:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(f"no operator {name}")

    monkeypatch.setattr(ops.torch.ops, "mkldnn", Gone())
    ops.packing_refusal.cache_clear()
    ops._log_refusal.cache_clear()
    try:
        assert PackedWeight.pack(torch.eye(4)) is None
        assert "no operator _reorder_linear_weight" in caplog.text
    finally:
        ops.packing_refusal.cache_clear()


def test_vocab_embedding_shards_sum_to_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TPGroup, "all_reduce", lambda _self, x: x)  # each rank's own summand
    table, ids = torch.randn(7, 3), torch.tensor([[6, 0, 3, 4]])
    total = torch.zeros(1, 4, 3)
    for rank in range(2):
        me = TPGroup(rank, 2)
        start, stop, rows = me.vocab_shard(7)
        local = nn.Embedding.from_pretrained(F.pad(table[start:stop], (0, 0, 0, rows - (stop - start))))
        total += VocabEmbedding(local, 7, me)(ids)
    assert torch.equal(total, table[ids])
