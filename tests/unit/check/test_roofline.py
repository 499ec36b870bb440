"""The roof formula, by hand."""

from dataclasses import replace

import pytest

from medusa_dist.check.roofline import GPU, GPUS, Work, find_gpu, knee, step
from medusa_dist.errors import ConfigError
from medusa_dist.model.sizing import RankSize

TOY = GPU("toy", 10**9, bandwidth=1000.0, half_peak=20_000.0, float_peak=5000.0)
DENSE = RankSize(
    weight_bytes=240,
    dense_bytes=200,
    expert_bytes=0,
    dense_params=100,
    expert_params=0,
    num_experts=0,
    widest=7,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    vocab_shard=11,
    input_shape=(11, 4),
    output_shape=(11, 4),
)
WORK = Work(DENSE, experts_per_token=1, kv_token_bytes=3, context=10, draft_bytes=50)


def test_step_time_is_the_longer_of_reading_and_computing() -> None:
    plain = step(TOY, "bfloat16", WORK, sequences=2, nodes=0)
    assert plain.rows == 2 and plain.draft_s == 0
    assert plain.memory_s == pytest.approx((200 + 2 * 10 * 3) / 1000)
    assert plain.compute_s == pytest.approx(2 * 100 * 2 / 20_000)
    assert plain.seconds == plain.memory_s
    tree = step(TOY, "bfloat16", WORK, sequences=2, nodes=24)
    assert tree.rows == 50 and tree.memory_s == plain.memory_s and tree.compute_s == pytest.approx(0.5)
    assert tree.seconds == pytest.approx(0.5 + 50 / 1000)
    assert step(TOY, "float32", WORK, 2, 24).compute_s == pytest.approx(2.0)


def test_knee_is_where_reading_equals_computing() -> None:
    assert knee(TOY, "float16", WORK) == 20  # 0.2 s of reading, 0.01 s a row
    assert knee(TOY, "float32", WORK) == 5


def test_expert_bytes_grow_with_the_share_of_experts_chosen() -> None:
    mixture = replace(
        WORK, size=replace(DENSE, expert_bytes=800, expert_params=400, num_experts=8), experts_per_token=2
    )
    assert mixture.weight_bytes(1) == pytest.approx(200 + 800 * 2 / 8)
    assert mixture.weight_bytes(2) == pytest.approx(200 + 800 * (1 - 0.75**2))
    assert mixture.weight_bytes(1000) == pytest.approx(1000)
    assert mixture.operations(3) == pytest.approx(2 * 3 * (100 + 400 * 2 / 8))


def test_gpu_table_is_plausible_and_found_by_name() -> None:
    assert {"h100", "h200", "a100-80g", "a100-40g", "l40s", "l4", "rtx4090", "b200"} <= set(GPUS)
    for gpu in GPUS.values():
        assert 20e9 < gpu.memory_bytes < 200e9 and 2e11 < gpu.bandwidth < 1e13
        assert gpu.float_peak < gpu.half_peak == gpu.peak("bfloat16") and gpu.peak("float32") == gpu.float_peak
    assert find_gpu("H100") is find_gpu("nvidia-h100") is GPUS["h100"]
    with pytest.raises(ConfigError, match=r"--gpu: 'h101' is unknown; use one of b200, .*l4"):
        find_gpu("h101")
