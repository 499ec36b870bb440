"""ContextCache: keys and values of a draft layer for all tokens, under the block tables of the base model.

Owns a KV pool of one layer on rank 0, with the slots of the base model's pool: what is cached, copied, freed and
recomputed there is here too, by the same plans. Not here: the layer (medusa/eagle3/layer.py), drafting
(context_drafter.py).
At KV index i is the pair of token i and of the base's fused state at the token before it. So a row depends on nothing
after it, and a block of the prefix cache holds for every sequence that shares it. There is no pair at index 0. The
state before the first row of a step is kept from the step before, by slot; after a hit in the prefix cache it is not
known, and taken as zero: one key of the draft layer is then a little off, which costs acceptance and no exactness. Rows
of draft tokens are written as those of known ones; an accepted one is copied to its place like the base model's.
Shapes: T rows of a pass, H the heads' width, A all tapped layers' outputs, B sequences, L keys.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.medusa.eagle3.expansion import Context
from medusa_dist.medusa.eagle3.layer import Eagle3
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.backend import StaticForm
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.forward_batch import ForwardBatch


class ContextCache:
    """The RowReader of one layer's heads. embedding: [V, H], that the heads read."""

    def __init__(self, heads: Eagle3, embedding: Tensor, num_blocks: int) -> None:
        """num_blocks: of the base model's pool, including the scratch block."""
        config = heads.config
        self._heads, self._embedding = heads, embedding
        self.cache = KVCache.allocate(1, config.num_kv_heads, config.head_dim, num_blocks, heads.dtype, heads.device)
        # Slot -> a tensor of fused states, the row in it, and the batch index that wrote it.
        self._states: dict[int, tuple[Tensor, int, int]] = {}
        self._written: dict[int, list[int]] = {}  # batch index -> slots of its states

    def copy(self, plan: Plan) -> None:
        """Copy rows between slots as the base model's are, and the states kept for them."""
        sources, targets = plan.copy_sources, plan.copy_targets
        device = self._heads.device
        self.cache.copy_rows(torch.from_numpy(sources).to(device), torch.from_numpy(targets).to(device))
        kept = [self._states.get(slot) for slot in sources.tolist()]
        for slot, state in zip(targets.tolist(), kept, strict=True):
            if state is not None:
                self._states[slot] = state
                self._written.setdefault(state[2], []).append(slot)

    def can_be_captured(self, _form: StaticForm) -> bool:
        """Always: keys are read by drafting alone, which has its own attention."""
        return True

    def read(self, batch: ForwardBatch, states: Tensor) -> Tensor:
        """states: last hidden states, then the A columns of all tapped layers -> fused states [T, H], padding
        included."""
        config = self._heads.config
        return self._heads.fuse(states[:, -config.num_taps * config.target_hidden_size :])

    def keep(self, plan: Plan, tables: Ints, batch: ForwardBatch, read: Tensor) -> None:
        """Write the keys and values of all rows of a pass. read: their fused states."""
        fused = read
        before = fused[torch.from_numpy(previous_rows(plan, len(fused))).to(fused.device)]
        firsts = np.cumsum(plan.num_new_tokens + plan.num_draft_tokens) - plan.num_new_tokens - plan.num_draft_tokens
        before[torch.from_numpy(firsts).to(fused.device)] = self._states_before(plan, tables, fused)
        pairs, _ = self._heads.read(self._embedding[batch.input_ids], before)
        self.cache.write(0, batch.slot_mapping, *self._heads.keys_values(pairs, batch.positions))
        self._keep_states(plan, tables, fused)

    def _states_before(self, plan: Plan, tables: Ints, fused: Tensor) -> Tensor:
        """[S, H]: of each sequence, the fused state at its last computed token; zero where it is not known."""
        unknown = fused.new_zeros(fused.shape[1])
        admitted = set(plan.admitted_indices.tolist())
        found = []
        for index, computed in zip(plan.batch_indices.tolist(), plan.num_computed_tokens.tolist(), strict=True):
            state = self._states.get(_slot(tables, index, computed - 1)) if computed else None
            found.append(unknown if state is None or index in admitted else state[0][state[1]])
        return torch.stack(found)

    def _keep_states(self, plan: Plan, tables: Ints, fused: Tensor) -> None:
        """Keep the states of the rows that may be the last computed ones when the next step begins."""
        rows: list[int] = []
        slots: list[tuple[int, int]] = []  # and the batch index
        end = 0
        for index, computed, new, drafts in zip(
            *(x.tolist() for x in (plan.batch_indices, plan.num_computed_tokens, plan.num_new_tokens)),
            plan.num_draft_tokens.tolist(),
            strict=True,
        ):
            for slot in self._written.pop(index, ()):
                if slot in self._states and self._states[slot][2] == index:
                    del self._states[slot]
            rows += range(end + new - 1, end + new + drafts)
            slots += ((_slot(tables, index, computed + new - 1 + i), index) for i in range(drafts + 1))
            end += new + drafts
        kept = fused[torch.tensor(rows, device=fused.device)]
        for row, (slot, index) in enumerate(slots):
            self._states[slot] = kept, row, index
            self._written.setdefault(index, []).append(slot)

    def gather(self, sequences: Seq[Sequence], room: int) -> Context:
        """What the layer sees of the tokens before the roots of these sequences, with `room` free columns."""
        counts = [len(sequence.tokens) - 1 for sequence in sequences]
        longest = max(counts)
        slots: Ints = np.zeros((len(sequences), longest), dtype=np.int64)
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            slots[row, :count] = context_slots(sequence, count)
        device = self._heads.device
        picked = self.cache.rows[0].index_select(2, torch.from_numpy(slots.reshape(-1)).to(device))
        _, heads, _, dim = picked.shape
        both = picked.new_zeros(2, len(sequences), heads, longest + room, dim)
        both[:, :, :, :longest] = picked.view(2, heads, len(sequences), longest, dim).transpose(1, 2)
        columns = torch.arange(longest, device=device)
        seen = (columns > 0) & (columns < torch.tensor(counts, device=device)[:, None])
        return Context(both[0], both[1], columns.expand(len(sequences), -1), seen)


def previous_rows(plan: Plan, num_rows: int) -> Ints:
    """[T]: the row of the token before each row's; of a draft token its parent's. For the first row of a sequence, and
    for padding, some row."""
    before: Ints = np.maximum(np.arange(num_rows) - 1, 0)
    end, node = 0, 0
    for new, drafts in zip(plan.num_new_tokens.tolist(), plan.num_draft_tokens.tolist(), strict=True):
        first = end + new  # of the nodes; the root, their ROOT = -1, is the row before
        before[first : first + drafts] = first + plan.parents[node : node + drafts]
        end, node = first + drafts, node + drafts
    return before


def context_slots(sequence: Sequence, count: int) -> Ints:
    """The slots of its first `count` KV indices, where their rows are now: some are copied only in the next step."""
    indices = np.arange(count)
    blocks: Ints = np.array(sequence.block_table, dtype=np.int64)
    slots: Ints = blocks[indices // BLOCK_TOKENS] * BLOCK_TOKENS + indices % BLOCK_TOKENS
    for source, target in sequence.pending_copies:
        slots[target] = sequence.slot_at(source)
    return slots


def _slot(tables: Ints, batch_index: int, kv_index: int) -> int:
    return int(tables[batch_index, kv_index // BLOCK_TOKENS]) * BLOCK_TOKENS + kv_index % BLOCK_TOKENS
