"""Launches as data: recorded ones are not started, and the code around kernels needs no data and no hidden waits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from medusa_dist.ops.attention.backend import Ancestry, AttentionParams, BatchLayout, RotaryAngles
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.attention.triton_plan import TiledBatch, tile_shape
from medusa_dist.ops.forward_batch import ForwardBatch
from medusa_dist.ops.gpu.choice_kernel import choose
from medusa_dist.ops.gpu.launch import recorded
from medusa_dist.ops.gpu.layer_kernels import add_rms_norm, rms_norm, silu_mul
from tests.support.copy_count import CopyCount

GPU = torch.device("cuda", 0)


def test_a_layer_runs_on_fake_gpu_tensors_without_a_wait_or_a_copy() -> None:
    backend = TritonBackend(64, 4, torch.bfloat16)
    counts = (np.array([count]) for count in (4000, 1, 3))
    layout = BatchLayout(*counts, np.arange(1, 257)[None], [Ancestry(np.array([-1, 0, 0]))], 4)
    shape = tile_shape(64, torch.bfloat16)
    tiles = backend.metadata(layout, torch.device("cpu")).tiles(shape, 4)
    with FakeTensorMode(allow_non_fake_inputs=True), CopyCount() as count, recorded() as launches:
        fake = {
            name: torch.empty(getattr(tiles, name).shape, dtype=getattr(tiles, name).dtype, device=GPU)
            for name in ("sequences", "block_tables", "words", "items", "merges")
        }
        there = TiledBatch(layout, GPU)
        there._tiles[shape, 4] = replace(tiles, **fake)
        batch = ForwardBatch(*(torch.empty(4, dtype=torch.int64, device=GPU) for _ in range(7)), attention=there)
        cache = KVCache.allocate(1, 8, 64, 257, torch.bfloat16, GPU)
        q, k = (torch.empty(4, heads, 64, dtype=torch.bfloat16, device=GPU) for heads in (32, 8))
        angles = RotaryAngles(*(torch.empty(4, 64, dtype=torch.bfloat16, device=GPU) for _ in range(2)))
        out = backend(0, q, k, k, AttentionParams(0.1, 100, rotary=angles), cache, batch)
        x = torch.empty(4, 2048, dtype=torch.bfloat16, device=GPU)
        weight = torch.empty(2048, dtype=torch.bfloat16, device=GPU)
        add_rms_norm(x, rms_norm(x, weight, 1e-6, False), weight, 1e-6, False)
        silu_mul(x)
        numbers = torch.empty(4, dtype=torch.int64, device=GPU)
        _, columns = choose(x, numbers, numbers, torch.empty(4, device=GPU), 0, 2048)
    assert out.shape == q.shape and out.device == columns.device == GPU and columns.dtype == torch.int64
    assert count.copies == 0
    names = [launch.kernel.__name__ for launch in launches]
    assert names[:3] == ["rotate_and_write", "attend_tiles", "merge_splits"]
    assert names[3:] == ["add_and_normalise"] * 2 + ["silu_times_up", "choose_in_parts", "choose_part"]


def test_the_copy_count_counts() -> None:
    with FakeTensorMode(), CopyCount() as count:
        there = torch.empty(3).to(GPU)
        assert (there + 1).view(3).half().device == GPU  # a change of dtype is no copy between devices
        there.cpu()
    assert count.copies == 2


def test_batch_metadata_is_one_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (np.array(values) for values in ((40, 300), (1, 2), (3, 0)))
    trees = [Ancestry(np.array([-1, 0, 0])), Ancestry(np.array([], dtype=np.int64))]
    layout = BatchLayout(*counts, np.arange(1, 41).reshape(2, 20), trees, 6)
    uploads: list[torch.Size] = []
    before = torch.Tensor.to

    def to(self: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        uploads.append(self.shape)
        return before(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = TritonBackend(64, 4, torch.bfloat16).metadata(layout, torch.device("cpu"))
    tiles = batch.tiles(tile_shape(64, torch.bfloat16), 4)
    assert len(uploads) == 1
    assert tiles.words[1:4].flatten().tolist() == [0b1, 0b11, 0b101] and not tiles.words[[0, 4, 5]].any()
    assert tiles.sequences.tolist() == [[0, 4, 40, 41, 44], [4, 2, 300, 302, 302], [6, 0, 0, 0, 0]]
