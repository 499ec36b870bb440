"""AttentionBackend: the interface of attention over the paged KV cache.

Owns the protocol, AttentionParams, and the row layout of a batch (BatchLayout). Not here: the backends (padded.py,
paged_cpu.py, triton_backend.py), their registry (registry.py), the bridge to transformers (model/attention_bridge.py).
Shapes: T rows of the batch, Hq query heads, Hk KV heads, D head_dim, S sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array, Bools, Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.metadata import Section, StepSizes
from medusa_dist.ops.forward_batch import ForwardBatch

_ROOT = -1  # parent of a tree's first nodes (medusa/trees/tree.py)


@dataclass(frozen=True)
class RotaryAngles:
    """Rotary embedding that is left to the backend, which may do it where it writes the keys.

    cos, sin: [T, R] in the model's dtype, of the first R <= D elements of a head, which are paired as (i, i + R / 2).
    """

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """x [T, H, D] rotated, in the operations of transformers' `apply_rotary_pos_emb`."""
        width = self.cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        low, high = turned.chunk(2, dim=-1)
        made = turned * self.cos[:, None] + torch.cat([-high, low], dim=-1) * self.sin[:, None]
        return torch.cat([made, rest], dim=-1)


@dataclass(frozen=True)
class AttentionParams:
    """Parameters of a layer's attention scores.

    window: a key is visible if 0 <= query position - key position < window; None: all. softcap: scores become c *
    tanh(scores / c). sinks [Hq]: one more score per head that takes part in the softmax and has no value. rotary: what
    queries and keys are still to be rotated by, before keys are written; None: nothing.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    rotary: RotaryAngles | None = None

    def rotated(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [T, Hq, D] and keys [T, Hk, D] after what is left of their rotary embedding."""
        if self.rotary is None:
            return queries, keys
        return self.rotary.rotate(queries), self.rotary.rotate(keys)


class Ancestry:
    """Depths [N] and ancestors (a node is its own ancestor) of one tree, computed from its parents."""

    def __init__(self, parents: Ints) -> None:
        depths: list[int] = []
        sets: list[int] = []  # bit n: node n is an ancestor. Python's integers have as many bits as there are nodes
        for node, parent in enumerate(parents.tolist()):
            depths.append(1 if parent == _ROOT else depths[parent] + 1)
            sets.append(1 << node | (0 if parent == _ROOT else sets[parent]))
        self.depths: Ints = np.array(depths, dtype=np.int64)
        self._sets = sets

    def words(self, num_words: int) -> Ints:
        """Ancestors as bits, [N, num_words] int64: bit b of word w of a row is node 64 w + b."""
        packed = b"".join(ancestors.to_bytes(8 * num_words, "little") for ancestors in self._sets)
        return np.frombuffer(packed, dtype="<i8").reshape(-1, num_words)

    @cached_property
    def matrix(self) -> Bools:
        """Ancestors [N, N] as booleans."""
        size = len(self._sets)
        bits = self.words(max(1, -(-size // 64))).view(np.uint8)
        return np.unpackbits(bits, axis=1, count=size, bitorder="little").view(np.bool_)


@dataclass(frozen=True)
class BatchLayout:
    """Which rows of a batch belong to which sequence. Host arrays; rows are in sequence order.

    Sequence s has num_new_tokens[s] known tokens at the positions from num_computed_tokens[s] on, then
    num_draft_tokens[s] draft tokens, whose keys follow in tree order. num_rows: of the batch, including padding.
    """

    num_computed_tokens: Ints  # [S]
    num_new_tokens: Ints  # [S]
    num_draft_tokens: Ints  # [S]
    block_tables: Ints  # [S, blocks]
    trees: list[Ancestry]
    num_rows: int

    @property
    def rows(self) -> Ints:
        """Number of rows of each sequence [S]."""
        found: Ints = self.num_new_tokens + self.num_draft_tokens
        return found

    @property
    def lengths(self) -> Ints:
        """Number of keys of each sequence [S], including draft tokens."""
        found: Ints = self.num_computed_tokens + self.rows
        return found

    @property
    def used_blocks(self) -> int:
        """Number of blocks of the longest sequence."""
        return -(-int(self.lengths.max()) // BLOCK_TOKENS)


class StaticForm(Protocol):
    """Metadata in arrays of fixed shapes, for a step that is captured once and replayed with new data."""

    def fits(self, head_dim: int, per_head: int, dtype: torch.dtype) -> bool:
        """Whether another layer, with per_head query heads for each KV head, can read it."""

    def sections(self, sizes: StepSizes) -> dict[str, Section]:
        """Name -> form of the arrays."""

    def fill(self, layout: BatchLayout, arrays: Mapping[str, Array]) -> None:
        """Write a batch that fits to the arrays, every element of them."""

    def metadata(self, tensors: Mapping[str, Tensor]) -> Any:
        """What `AttentionBackend.metadata` returns, over tensors of the sections' forms."""


class AttentionBackend(Protocol):
    """Attention of one rank. To add one, write a class with these members and add a row to registry.py."""

    static_form: StaticForm | None
    """How its metadata is laid out for captured steps; None: it cannot be captured."""

    tree_alignment: int | None
    """A tree must not extend past a multiple of this many KV indices, so that its keys are summed in their final chunk;
    None: no limit."""

    keys_in_columns: bool
    """How its caches hold keys, see KVCache."""

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what a cache of this dtype needs, so that no step waits for it."""

    def metadata(self, layout: BatchLayout, device: torch.device) -> Any:
        """What `__call__` needs to know about a batch, built once for all layers; stored as ForwardBatch.attention."""

    def __call__(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        params: AttentionParams,
        cache: KVCache,
        batch: ForwardBatch,
    ) -> Tensor:
        """Write the new keys and values [T, Hk, D] to batch.slot_mapping, then attend every query [T, Hq, D] to the
        keys it may see: all known tokens up to its own, and of the draft tokens its ancestors. Returns [T, Hq, D]."""
