"""The fit of what steps take beyond the curve, on steps whose truth is known."""

import random

import pytest

from medusa_dist.medusa.trees.cost_correction import CostCorrection


def curve(rows: int) -> float:
    return 0.05 + 0.001 * rows


def serve(
    excess: CostCorrection,
    nodes: list[int],
    batch: int,
    offset: float,
    slope: float,
    *,
    fixed: float = 0.0,
    noise: float = 0.0,
) -> None:
    rng = random.Random(1)
    for count in nodes:
        foreseen = curve(batch + count)
        seconds = foreseen + offset + fixed * (count > 0) + slope * count + rng.gauss(0.0, noise)
        excess.learn(batch, count, seconds, foreseen)


def test_correction_starts_at_zero() -> None:
    assert (CostCorrection().slope, CostCorrection().offset(4)) == (0.0, 0.0)


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_offset_and_slope_are_learned_separately(noise: float) -> None:
    excess = CostCorrection()
    nodes = [0 if i % 64 == 0 else 20 + i % 5 for i in range(600)]
    serve(excess, nodes, 16, 0.03, 0.0006, noise=noise)
    assert excess.slope == pytest.approx(0.0006, rel=0.35 if noise else 0.05)
    assert excess.offset(16) == pytest.approx(0.03, abs=0.006)


def test_slope_is_shared_by_batch_sizes_and_offset_is_per_batch_size() -> None:
    excess = CostCorrection()
    serve(excess, [0, 30] * 100, 16, 0.02, 0.001)
    serve(excess, [10] * 50, 48, 0.08, 0.001)
    assert excess.offset(48) == pytest.approx(0.08, abs=0.004)
    assert excess.offset(16) == pytest.approx(0.02, abs=0.004)
    assert excess.offset(5) == excess.offset(16) and excess.offset(40) == excess.offset(48)  # the most similar


def test_constant_node_counts_leave_the_slope_at_zero() -> None:
    excess = CostCorrection()
    serve(excess, [20] * 200, 8, 0.01, 0.002)
    assert excess.slope == 0.0
    assert excess.offset(8) == pytest.approx(0.05)


def test_steps_cheaper_than_the_curve_leave_the_correction_at_zero() -> None:
    excess = CostCorrection()
    serve(excess, [0, 20] * 100, 8, -0.01, -0.0005)
    assert (excess.slope, excess.fixed, excess.offset(8)) == (0.0, 0.0, 0.0)


def test_fixed_cost_of_drafting_and_cost_per_node_are_separated() -> None:
    excess = CostCorrection()
    nodes = [0 if i % 32 == 0 else 10 + i % 11 for i in range(2000)]
    serve(excess, nodes, 16, 0.03, 0.0006, fixed=0.02, noise=0.002)
    assert excess.slope == pytest.approx(0.0006, rel=0.1)
    assert excess.fixed == pytest.approx(0.02, rel=0.2)
    assert excess.offset(16) == pytest.approx(0.03, abs=0.004)


def test_negative_fixed_cost_or_slope_is_zero_and_their_sum_still_right() -> None:
    """Only one kind of tree and plain steps: what drafts cost is found, whoever it is put down to."""
    for fixed, slope in ((0.02, -0.0005), (-0.005, 0.001)):
        excess = CostCorrection()
        serve(excess, [0, 20, 10, 20] * 300, 8, 0.01, slope, fixed=fixed)
        assert excess.slope >= 0.0 and excess.fixed >= 0.0
        assert excess.fixed + 15 * excess.slope == pytest.approx(fixed + 15 * slope, rel=0.2)


def test_outlier_step_hardly_changes_the_offset() -> None:
    calm, busy = CostCorrection(), CostCorrection()
    for excess in (calm, busy):
        serve(excess, [0, 20] * 100, 8, 0.01, 0.001)
    busy.learn(8, 20, 60.0, curve(28))
    assert busy.offset(8) < calm.offset(8) + 0.05
