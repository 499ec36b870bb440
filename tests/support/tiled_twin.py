"""What the Triton attention kernels do, written in numpy: a backend for CPUs that reads the same metadata.

The interpreter takes minutes for what an engine does in a test. Sums are in float64 over the visible keys alone, so a
row's bits depend on what it sees, not on where that stands.
"""

import numpy as np
import torch

from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.metadata import TiledMetadata
from medusa_dist.ops.attention.triton_backend import TritonBackend
from medusa_dist.ops.forward_batch import ForwardBatch

Sums = tuple[np.ndarray, np.ndarray, np.ndarray]  # maxima [Hk], normalisers [Hk], weighted values [Hk, D]


class TiledTwin(TritonBackend):
    """Rows that no item computes stay NaN."""

    def __call__(
        self,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        params: AttentionParams,
        cache: KVCache,
        batch: ForwardBatch,
    ) -> torch.Tensor:
        queries, keys = params.rotated(queries, keys)
        cache.write(layer, batch.slot_mapping, keys, values)
        shape, per_head = self._model
        tiles = batch.attention.tiles(shape, per_head)
        out = np.full(queries.shape, np.nan, dtype=np.float64)
        run = _Tiles(tiles, queries, cache.rows[layer], params, batch.positions.numpy(), (shape, per_head), out)
        for item in tiles.items.tolist():
            run.attend(*item)
        for merge in tiles.merges.tolist():
            run.merge(*merge)
        return torch.from_numpy(out).to(queries.dtype)


class _Tiles:
    def __init__(self, tiles: TiledMetadata, queries, planes, params, positions, model, out) -> None:
        self.tiles, self.params, self.positions, self.out = tiles, params, positions, out
        self.shape, self.per_head = model
        self.queries = queries.double().numpy()
        self.keys, self.values = planes.double().numpy()
        self.sequences, self.tables = tiles.sequences.numpy(), tiles.block_tables.numpy()
        self.words = tiles.words.numpy()
        self.scratch: dict[int, Sums] = {}
        assert params.sinks is None

    def attend(self, sequence: int, first: int, split_begin: int, split_end: int, scratch: int) -> None:
        first_row, num_rows = self.sequences[sequence, :2].tolist()
        for place in range(self.shape.pairs):
            pair = first + place
            if pair // self.per_head >= num_rows:
                break
            sums = self._sum(sequence, pair, split_begin * self.shape.split, split_end * self.shape.split)
            if scratch < 0:
                self._store(first_row, pair, sums)
            else:
                assert scratch + place < self.tiles.num_scratch_rows and scratch + place not in self.scratch
                self.scratch[scratch + place] = sums

    def merge(self, sequence: int, first: int, num_splits: int, scratch: int, num_pairs: int) -> None:
        for place in range(num_pairs):
            parts = [self.scratch.pop(scratch + split * num_pairs + place) for split in range(num_splits)]
            highest = np.max([part[0] for part in parts], axis=0)
            scales = [np.exp(part[0] - np.where(np.isinf(highest), 0.0, highest)) for part in parts]
            norm = sum(scale * part[1] for scale, part in zip(scales, parts, strict=True))
            total = sum(scale[:, None] * part[2] for scale, part in zip(scales, parts, strict=True))
            self._store(int(self.sequences[sequence, 0]), first + place, (highest, norm, total))

    def _sum(self, sequence: int, pair: int, begin: int, end: int) -> Sums:
        first_row, _, computed, known, length = self.sequences[sequence].tolist()
        local = pair // self.per_head
        row, is_node = first_row + local, local >= known - computed
        limit = known if is_node else computed + local + 1
        columns = np.arange(begin, min(end, length if is_node else limit))
        seen = columns < limit
        if is_node:
            node = np.clip(columns - known, 0, 64 * self.words.shape[1] - 1)
            seen |= (columns >= known) & ((self.words[row, node // 64] >> (node % 64)) & 1 == 1)
        if self.params.window is not None:
            of_node = self.positions[np.clip(first_row + columns - computed, 0, self.positions.size - 1)]
            seen &= self.positions[row] - np.where(columns >= known, of_node, columns) < self.params.window
        columns = columns[seen]
        heads = self.keys.shape[0]
        if not columns.size:
            return np.full(heads, -np.inf), np.zeros(heads), np.zeros((heads, self.keys.shape[2]))
        slots = self.tables[sequence, columns // BLOCK_TOKENS] * BLOCK_TOKENS + columns % BLOCK_TOKENS
        query = self.queries[row, np.arange(heads) * self.per_head + pair % self.per_head]
        scores = np.einsum("hd,hkd->hk", query, self.keys[:, slots]) * self.params.scale
        if self.params.softcap is not None:
            scores = np.tanh(scores / self.params.softcap) * self.params.softcap
        highest = scores.max(axis=1)
        weights = np.exp(scores - highest[:, None])
        return highest, weights.sum(axis=1), np.einsum("hk,hkd->hd", weights, self.values[:, slots])

    def _store(self, first_row: int, pair: int, sums: Sums) -> None:
        row, heads = first_row + pair // self.per_head, self.keys.shape[0]
        _, norm, total = sums
        mean = total / np.where(norm == 0.0, 1.0, norm)[:, None]
        self.out[row, np.arange(heads) * self.per_head + pair % self.per_head] = mean
