"""The compiled attention by itself: bfloat16, NaN, its exponential, when it is compiled, what it refuses.

What it computes is tested beside the other backends (test_padded.py).
"""

import errno
import importlib
import math
from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch

from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.ops.attention.paged_cpu import compile_kernel
from medusa_dist.ops.attention.paged_cpu_kernel import attend as kernel
from medusa_dist.ops.attention.paged_cpu_kernel import rotate_and_write
from medusa_dist.ops.cpu.numba_cache import kept_on_disk
from tests.support.attention_cases import SCORINGS, Contents, Heads, attend, random_pieces
from tests.support.plan_helpers import Piece

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bfloat16_attention_equals_float32_rounded_once() -> None:
    """The kernel computes in float32: from rounded inputs, the same as in float32 throughout, then rounded once."""
    pieces = random_pieces(11)
    narrow = Contents.random(pieces, Heads(6, 3, 8), 11).to(torch.bfloat16)
    got = attend(pieces, narrow, SCORINGS["all"], "paged_cpu")
    assert torch.equal(got, attend(pieces, narrow.to(torch.float32), SCORINGS["all"], "paged_cpu").to(torch.bfloat16))


def test_nan_key_makes_only_its_own_rows_nan() -> None:
    pieces = [Piece(20, 1), Piece(20, 1)]
    contents = Contents.random(pieces, Heads(2, 1, 8), 0)
    contents.old[0][0][7] = float("nan")
    out = attend(pieces, contents, AttentionParams(0.3), "paged_cpu")
    assert out[0].isnan().all() and not out[1].isnan().any()


def test_kernels_exponential_is_within_3_ulp_of_float64() -> None:
    """Through a softmax over two keys: within 3 units in the last place of float64's, down to where it vanishes."""
    for gap in [0.0, 1e-6, 0.1, 0.35, 1.0, 5.0, 20.0, 80.0, 87.0]:
        pieces = [Piece(1, 1)]
        one = torch.ones(1, 1, 1)
        contents = Contents(Heads(1, 1, 1), one, one * -gap, one, [(0 * one, 0 * one)])
        got = attend(pieces, contents, AttentionParams(1.0), "paged_cpu").item()  # keys 0 and -gap, values 0 and 1
        wanted = math.exp(-gap) / (1 + math.exp(-gap))
        assert got == pytest.approx(wanted, rel=4e-7)


def test_compile_kernel_covers_all_signatures_used_later() -> None:
    dtypes = [torch.float32, torch.bfloat16]
    for dtype in dtypes:
        compile_kernel(dtype)
    before = [*kernel.signatures], [*rotate_and_write.signatures]
    assert [len(signatures) for signatures in before] == [2, 2]
    for pieces in ([Piece(0, 1)], [Piece(0, 40)], [Piece(5, 1, (-1, 0)), Piece(30, 2)]):
        for dtype in dtypes:
            for scoring in SCORINGS.values():
                attend(pieces, Contents.random(pieces, Heads(6, 3, 8), 0).to(dtype), scoring, "paged_cpu")
    assert ([*kernel.signatures], [*rotate_and_write.signatures]) == before


def test_function_that_cannot_be_cached_on_disk_still_runs() -> None:
    names: dict = {}
    exec("def twice(x):\n    return 2 * x", names)  # as in a folder that nobody may write to: numba finds no place
    function = numba.njit(names["twice"])
    with pytest.raises(RuntimeError, match="no locator"):
        function.enable_caching()
    assert kept_on_disk(function)(21) == 42


def test_tensor_that_does_not_fit_the_pool_is_an_assertion_error() -> None:
    pieces = [Piece(3, 4)]
    fits = Contents.random(pieces, Heads(4, 2, 8), 0)
    for wrong in (
        replace(fits, v=fits.v[..., :4]),
        replace(fits, k=fits.k[:, :1]),
        replace(fits, k=fits.k.to(torch.bfloat16)),
        replace(fits, q=fits.q[:, :3]),
        replace(fits, q=fits.q[..., :4]),
    ):
        with pytest.raises(AssertionError):
            attend(pieces, wrong, AttentionParams(0.3), "paged_cpu")
    with pytest.raises(AssertionError):
        attend(pieces, fits, AttentionParams(0.3, sinks=torch.zeros(3)), "paged_cpu")


def test_full_disk_leaves_the_compiled_function_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the first call's error comes after compiling, so the next call has nothing to write."""
    (tmp_path / "twice.py").write_text("import numba\n\n@numba.njit(cache=True)\ndef twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    twice = importlib.import_module("twice").twice

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(twice._cache, "save_overload", full)
    with pytest.raises(OSError, match="no space"):
        twice(21)
    assert twice(21) == 42
