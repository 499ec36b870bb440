"""AttentionBackend: the interface of whatever computes attention over the paged KV cache.

Owns the protocol, what a layer asks (AttentionParams), and what a step's rows look like (BatchLayout). Not here: the
backends (padded.py, paged_cpu.py), their registry (registry.py), the bridge to transformers
(model/attention_bridge.py). Shapes: T rows of the pass, Hq query heads, Hk KV heads, D head_dim, S sequences.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Bools, Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.forward_batch import ForwardBatch

_ROOT = -1  # parent of a tree's first nodes (medusa/trees/tree.py)


@dataclass(frozen=True)
class AttentionParams:
    """What a layer asks of its attention scores.

    window: a key is seen if 0 <= query position - key position < window; None: all. softcap: scores become
    c * tanh(scores / c). sinks [Hq]: one more score per head that takes part in the softmax and carries no value.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class Ancestry:
    """Depths [N] and ancestor matrix [N, N] (a node is its own ancestor) of one tree, from its parents."""

    def __init__(self, parents: Ints) -> None:
        size = parents.size
        self.depths: Ints = np.ones(size, dtype=np.int64)
        self.matrix: Bools = np.eye(size, dtype=np.bool_)
        for node, parent in enumerate(parents):
            if parent != _ROOT:
                self.depths[node] = self.depths[parent] + 1
                self.matrix[node] |= self.matrix[parent]


@dataclass(frozen=True)
class BatchLayout:
    """Which rows of a pass belong to which sequence. Host arrays; rows are sequence after sequence.

    Sequence s has num_new_tokens[s] known tokens at the positions from num_computed_tokens[s] on, then
    num_draft_tokens[s] drafted ones, whose keys follow them in tree order. num_rows: of the pass, padding included.
    """

    num_computed_tokens: Ints  # [S]
    num_new_tokens: Ints  # [S]
    num_draft_tokens: Ints  # [S]
    block_tables: Ints  # [S, blocks]
    trees: list[Ancestry]
    num_rows: int

    @property
    def rows(self) -> Ints:
        """Rows of each sequence [S]."""
        found: Ints = self.num_new_tokens + self.num_draft_tokens
        return found

    @property
    def lengths(self) -> Ints:
        """Keys of each sequence [S], drafts included."""
        found: Ints = self.num_computed_tokens + self.rows
        return found

    @property
    def used_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return -(-int(self.lengths.max()) // BLOCK_TOKENS)


class AttentionBackend(Protocol):
    """One rank's attention. Add one: a class with these members, and a row in registry.py."""

    tree_alignment: int | None
    """KV indices at whose multiples a tree must end, so that its keys are summed where they stay; None: nowhere."""

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what a cache of this dtype needs, so that no step waits for it."""

    def metadata(self, layout: BatchLayout, device: torch.device) -> Any:
        """What `__call__` will read of a pass, made once for all layers; it travels as ForwardBatch.attention."""

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
        """Write the new keys and values [T, Hk, D] to batch.slot_mapping, then let every query [T, Hq, D] read what it
        may see: all known tokens up to itself, of drafted ones its ancestors. Returns [T, Hq, D]."""
