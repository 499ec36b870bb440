"""Rows times a panel: against numpy, and each row's bits against those of the row alone."""

import numpy as np
import pytest

from medusa_dist.ops.arrays import Array
from medusa_dist.ops.cpu.row_products_kernel import PANEL, multiply_rows

COUNTS = (1, 16, 61)


def multiply(a: Array, panel: Array, out: Array, adds: bool) -> Array:
    """multiply_rows on a copy of out, among other numbers that must stay; panel [count, PANEL + 5], of which it reads
    the first PANEL columns."""
    around = np.full((out.shape[0] + 1, PANEL + 3), 7.0, np.float32)
    around[:-1, :PANEL] = out
    sizes = a.shape[1], panel.ctypes.data, panel.shape[1], panel.shape[0], around.ctypes.data, around.shape[1]
    multiply_rows(a.ctypes.data, *sizes, a.shape[0], adds, panel[0, 0])
    assert (around[-1] == 7).all() and (around[:, PANEL:] == 7).all()
    return around[:-1, :PANEL].copy()


@pytest.mark.parametrize("stored", [np.float32, np.int16])
@pytest.mark.parametrize("adds", [False, True])
def test_products_equal_numpys_and_a_row_has_the_bits_it_has_alone(stored: type, adds: bool) -> None:
    rng = np.random.default_rng(0)
    for rows in (*range(1, 20), 48):
        for count in COUNTS:
            a, out = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, count), (rows, PANEL)))
            values = rng.standard_normal((count, PANEL + 5), dtype=np.float32)
            panel = values
            if stored is np.int16:  # bfloat16: the upper half of a float32
                panel = (values.view(np.int32) >> 16).astype(np.int16)
                values = (panel.astype(np.int32) << 16).view(np.float32)
            got = multiply(a, panel, out, adds)
            exact = a.astype(np.float64) @ values[:, :PANEL].astype(np.float64) + adds * out.astype(np.float64)
            np.testing.assert_allclose(got, exact, atol=1e-4)
            for row in range(rows):
                alone = multiply(a[row : row + 1].copy(), panel, out[row : row + 1], adds)
                assert got[row].tobytes() == alone[0].tobytes()
