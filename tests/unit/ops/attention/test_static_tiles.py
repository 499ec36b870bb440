"""Tiles in arrays of fixed shapes: unused places compute nothing, used ones have the bits of a batch's own tiles."""

from typing import Any

import numpy as np
import pytest
import torch

from medusa_dist.ops.attention import triton_plan
from medusa_dist.ops.attention.backend import Ancestry, AttentionParams, BatchLayout
from medusa_dist.ops.attention.metadata import StepSizes
from medusa_dist.ops.attention.registry import BACKENDS
from medusa_dist.ops.attention.triton_backend import TritonBackend
from tests.support.attention_cases import Contents, Heads, attend, needs_triton
from tests.support.plan_helpers import Piece
from tests.support.tiled_twin import TiledTwin

pytestmark = pytest.mark.usefixtures("one_thread")
PIECES = [Piece(150, 1, (-1, 0, 0, 2)), Piece(40, 3), Piece(97, 1), Piece(0, 1, (-1, -1))]


def static(backend: type[TritonBackend]) -> type[TritonBackend]:
    """The backend with its metadata in arrays that are larger than needed and were full of -1."""

    class Static(backend):
        def metadata(self, layout: BatchLayout, device: torch.device) -> Any:
            form = self.static_form
            assert form is not None
            sizes = StepSizes(layout.num_rows, len(layout.rows) + 3, layout.block_tables.shape[1] + 2)
            arrays = {name: np.full(shape, -1, dtype) for name, (shape, dtype) in form.sections(sizes).items()}
            form.fill(layout, arrays)
            return form.metadata({name: torch.from_numpy(array).to(device) for name, array in arrays.items()})

    return Static


@pytest.mark.parametrize("name", [pytest.param("triton", marks=needs_triton), "twin"])
@pytest.mark.parametrize("window", [20])
def test_static_tiles_have_the_bits_of_a_batchs_own(
    monkeypatch: pytest.MonkeyPatch, name: str, window: int | None
) -> None:
    monkeypatch.setattr(triton_plan, "_SPLIT", 32)  # several splits, some of them spread
    plain = TritonBackend if name == "triton" else TiledTwin
    monkeypatch.setitem(BACKENDS, "plain", plain)
    monkeypatch.setitem(BACKENDS, "static", static(plain))
    contents, scoring = Contents.random(PIECES, Heads(6, 2, 16), 1), AttentionParams(0.25, window)
    assert torch.equal(attend(PIECES, contents, scoring, "static"), attend(PIECES, contents, scoring, "plain"))


@needs_triton
def test_the_twin_says_what_the_kernels_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "_SPLIT", 32)
    monkeypatch.setitem(BACKENDS, "twin", TiledTwin)
    for scoring in (AttentionParams(0.25), AttentionParams(0.25, 20, 30.0)):
        contents = Contents.random(PIECES, Heads(6, 2, 16), 1)
        pairs = (attend(PIECES, contents, scoring, name) for name in ("twin", "triton"))
        assert torch.allclose(*pairs, atol=1e-5)


def test_arrays_hold_the_longest_contexts_of_as_many_sequences_as_fit() -> None:
    """Spreading is bounded by the arrays, however long contexts are."""
    form = TritonBackend(64, 4, torch.bfloat16).static_form
    assert form is not None
    for rows, nodes in ((8, 0), (64, 7), (64, 63)):
        count = rows // (1 + nodes)
        ones = np.ones(count, dtype=np.int64)
        trees = [Ancestry(np.arange(-1, nodes - 1)) for _ in range(count)]
        tables = np.zeros((count, 8192), dtype=np.int64)
        layout = BatchLayout(ones * 130_000, ones, ones * nodes, tables, trees, rows)
        sections = form.sections(StepSizes(rows, count, 8192))
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in sections.items()}
        form.fill(layout, arrays)  # raises if anything does not fit
        spread = arrays["items"][arrays["items"][:, 4] >= 0]
        rows_needed = (spread[:, 4] + 64).max(initial=0)
        metadata = form.metadata({name: torch.from_numpy(array) for name, array in arrays.items()})
        shape = triton_plan.tile_shape(64, torch.bfloat16)
        assert rows_needed <= metadata.tiles(shape, 4).num_scratch_rows + 64
