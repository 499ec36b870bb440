"""Scheduler: which sequences run in a step, with which tokens, drafts and KV blocks.

Owns all sequence groups, batch indices and blocks. Not here: what a step's results do to a group
(state/single_sequence.py, beam/group.py), the wire format (runner/plan.py), how many drafts are verified
(spec/tree_policy.py).
Rank 0 only; pure host work, no tensors. One rule covers prefill, chunked prefill, decoding and trees: computed tokens
catch up with known plus draft tokens.
Order: decoding sequences, then partly computed prompts, then waiting groups, each by priority, then first come, first
served.
When blocks run out, trees shrink first (they only use what is left over). Then the group with the lowest priority is
preempted, the youngest among equals; it is recomputed later. A running group is never preempted for a waiting one.
"""

import heapq
import time
from collections.abc import Sequence as Seq

import numpy as np

from medusa_dist.engine.beam.group import Moves, beam_group, shared_blocks, with_forks
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.prompt_logprobs import PromptLogprobs
from medusa_dist.engine.scheduler.plan_builder import build_plan
from medusa_dist.engine.spec.draft_policy import DraftPolicy
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for
from medusa_dist.engine.state.limits import Limits, check_request
from medusa_dist.engine.state.matcher import Matcher
from medusa_dist.engine.state.sequence import NOT_IN_BATCH, Sequence, SequenceGroup, StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.engine.state.waiting_queue import WaitingQueue
from medusa_dist.medusa.trees.tree import EMPTY
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.request import Request


class Scheduler:
    """All sequence groups of one engine, from submit to their last output."""

    def __init__(self, limits: Limits, pool: BlockPool, policy: DraftPolicy, generation: int) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting = WaitingQueue()
        self._admitted: list[SequenceGroup] = []  # in order of admission
        self.num_preemptions = 0
        self.queue_seconds: list[float] = []  # of the groups that the last step admitted for the first time
        self._num_submitted = 0
        self._policy = policy
        self._generation = generation
        self._free_indices = list(range(limits.max_running))
        self._by_index: dict[int, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    @property
    def kv_used_fraction(self) -> float:
        """Fraction of the KV cache in use."""
        return 1.0 - self.pool.num_free / max(1, self.pool.num_usable)

    @property
    def running(self) -> list[Sequence]:
        """Sequences with tokens to compute, in order of admission."""
        return [sequence for group in self._admitted for sequence in group.running]

    def submit(self, request: Request, output_ids: tuple[int, ...] = (), matcher: Matcher | None = None) -> None:
        """Queue a request; output_ids were emitted before, and matcher is positioned after them.

        Raises RequestError if the request can never be served.
        """
        check_request(request, self.limits, self.pool.num_usable)
        number = self._num_submitted
        if request.params.beam_width is None:
            self.waiting.add(SingleSequence(request, output_ids, number, matcher))
        else:
            self.waiting.add(beam_group(request, self.limits, self.pool.num_usable, number))
        self._num_submitted += 1

    def abort(self, request_id: str) -> None:
        """Drop a waiting or running request. Idempotent: unknown ids are ignored."""
        for group in [g for g in (*self.waiting, *self._admitted) if g.request.request_id == request_id]:
            group.root.finish_reason = FinishReason.ABORT
            if group.root.batch_index == NOT_IN_BATCH:
                self.waiting.remove(group)
            else:
                self._release(group)

    def schedule(self, step: int) -> Plan:
        """Decide the next step. Call only if has_work."""
        self.queue_seconds = []
        moves = self._flush_copies()
        admitted: list[Sequence] = []
        chosen = self._choose_running()
        budget = self.limits.max_batched_tokens - sum(num_new for _, num_new in chosen)
        if len(self.running) == len(chosen):  # every running sequence is scheduled: admit waiting ones
            for group in self._admit(budget):
                sequence = group.root
                num_new = min(sequence.num_uncomputed_tokens, budget)
                self._extend(sequence, sequence.num_computed_tokens + num_new)
                budget -= num_new
                admitted += group.sequences
                chosen.append((sequence, num_new))
        self._plant_trees(chosen, budget)
        copies: Ints = np.array(with_forks(moves, (s for s, _ in chosen)), dtype=np.int64).reshape(-1, 2)
        slots = copies[:, 0].copy(), copies[:, 1].copy()
        plan = build_plan((self._generation, step), chosen, admitted, slots, self.limits.graph_buckets)
        for sequence, _ in chosen:
            sequence.num_broadcast_blocks = len(sequence.block_table)
        return plan

    def emit(self, plan: Plan, verdicts: Seq[StepResult], prompt_scores: PromptLogprobs | None = None) -> list[Output]:
        """Apply a step's results: tokens, KV to keep, prompt logprobs, finished groups."""
        if prompt_scores is not None:
            begins = np.cumsum(plan.num_prompt_logprobs) - plan.num_prompt_logprobs
            for batch_index, begin, count in zip(plan.batch_indices, begins, plan.num_prompt_logprobs, strict=True):
                sequence = self._by_index[int(batch_index)]
                num_top = sequence.request.params.prompt_logprobs or 0
                sequence.prompt_logprobs += prompt_scores.entries(int(begin), int(count), num_top)
        for batch_index, num_new in zip(plan.batch_indices, plan.num_new_tokens, strict=True):
            self._by_index[int(batch_index)].num_computed_tokens += int(num_new)
        outputs = []
        for group, results in _by_group(verdicts).items():
            output = group.advance(results, self.limits, self.pool)
            if group.is_finished:
                for sequence in group.running:
                    # draft tokens accepted in this step are not cached: they are not in place yet
                    self._name_full_blocks(sequence)
                self._release(group)
            if output is not None:
                outputs.append(output)
        return outputs

    def sequences_with_logits(self, plan: Plan) -> list[Sequence]:
        """The plan's sequences that need logits, in its order."""
        return [self._by_index[int(batch_index)] for batch_index in plan.batch_indices[plan.needs_logits == 1]]

    # --- schedule, part by part ---

    def _flush_copies(self) -> Moves:
        """KV slots to copy for the paths accepted in the last step; then frees the blocks after the known tokens.

        Ranks copy rows before they write any, so a block freed here can be allocated to another sequence in the same
        plan.
        """
        moves: Moves = []
        for sequence in self.running:
            moves += [(sequence.slot_at(a), sequence.slot_at(b)) for a, b in sequence.pending_copies]
            sequence.pending_copies = []
            self._name_full_blocks(sequence)
            keep = blocks_for(len(sequence.tokens))
            if keep < len(sequence.block_table):
                self.pool.free(sequence.block_table[keep:])
                del sequence.block_table[keep:]
                sequence.num_broadcast_blocks = min(sequence.num_broadcast_blocks, keep)
        return moves

    def _name_full_blocks(self, sequence: Sequence) -> None:
        """Add blocks that are full of verified tokens to the prefix cache, now that their rows are in place.

        Pending copies are done at the start of this plan, before any row is read.
        """
        full = min(sequence.num_computed_tokens // BLOCK_TOKENS, len(sequence.block_table))
        for index in range(sequence.num_hashed_blocks, full):
            self.pool.cache_block(sequence.block_table[index], sequence.prefix_hashes(full)[index])
        sequence.num_hashed_blocks = max(sequence.num_hashed_blocks, full)

    def _choose_running(self) -> list[tuple[Sequence, int]]:
        """(sequence, known tokens to compute now), decoding ones first; preempts when blocks run out."""
        budget = self.limits.max_batched_tokens
        chosen: list[tuple[Sequence, int]] = []
        for sequence in sorted(self.running, key=lambda s: (s.num_uncomputed_tokens > 1, s.priority_key)):
            num_new = min(sequence.num_uncomputed_tokens, budget)
            if (
                sequence.batch_index != NOT_IN_BATCH
                and num_new > 0
                and self._make_room(sequence, sequence.num_computed_tokens + num_new)
            ):
                self._extend(sequence, sequence.num_computed_tokens + num_new)
                chosen.append((sequence, num_new))
                budget -= num_new
        return [(sequence, num_new) for sequence, num_new in chosen if sequence.batch_index != NOT_IN_BATCH]

    def _extend(self, sequence: Sequence, num_kv_tokens: int) -> None:
        """Allocate the blocks it lacks for num_columns tokens; the caller ensured that there are enough."""
        sequence.block_table += self.pool.allocate(
            sequence.num_blocks_to_allocate(num_kv_tokens), behind=sequence.block_table
        )

    def _make_room(self, sequence: Sequence, num_kv_tokens: int) -> bool:
        """Preempt the last groups in priority until there are blocks for num_columns tokens.

        False if the group of `sequence` itself was preempted.
        """
        while sequence.num_blocks_to_allocate(num_kv_tokens) > self.pool.num_free:
            last = max(self._admitted, key=lambda g: g.priority_key)
            self._release(last)
            last.num_preemptions += 1
            self.num_preemptions += 1
            self.waiting.add(last)
            if last is sequence.group:
                return False
        return True

    def _admit(self, budget: int) -> list[SequenceGroup]:
        """Admit waiting groups in order while all their known tokens fit; none overtakes another."""
        admitted: list[SequenceGroup] = []
        num_reserved = 0  # blocks reserved for the groups admitted here
        while self.waiting and self._free_indices and budget > 0:
            group = self.waiting.first
            sequence = group.root
            # The last known token is always computed, since its logits are needed. With prompt logprobs, all rows of
            # the prompt are computed.
            num_known = 0 if sequence.wants_prompt_logprobs else (len(sequence.tokens) - 1) // BLOCK_TOKENS
            prefix = self.pool.find_cached(sequence.prefix_hashes(num_known))
            new = blocks_for(min(len(sequence.tokens) + 1, self.limits.max_model_len)) - len(prefix)
            new += group.size - 1  # each fork copies a block
            idle = self.pool.count_idle(prefix)
            if group.size > len(self._free_indices) or new + num_reserved + idle > self.pool.num_free:
                break
            self.pool.add_owner(prefix)
            num_reserved += new
            sequence.block_table = prefix
            sequence.num_computed_tokens = len(prefix) * BLOCK_TOKENS
            sequence.num_hashed_blocks = len(prefix)
            if group.num_preemptions == 0:
                group.admitted_at = time.monotonic()
                self.queue_seconds.append(group.admitted_at - group.submitted_at)
                sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
            budget -= sequence.num_uncomputed_tokens
            self.waiting.remove(group)
            for seq in group.admit():
                seq.batch_index = heapq.heappop(self._free_indices)
                self._by_index[seq.batch_index] = seq
            self._admitted.append(group)
            admitted.append(group)
        return admitted

    def _plant_trees(self, chosen: list[tuple[Sequence, int]], budget: int) -> None:
        """Give trees to the sequences whose root is computed in this step, within the tokens and blocks left."""
        decoding = [s for s, num_new in chosen if num_new == s.num_uncomputed_tokens]
        for sequence, _ in chosen:
            sequence.tree, sequence.num_ranked, sequence.num_worthwhile = EMPTY, 0, 0
        num_other_rows = sum(num_new for _, num_new in chosen) - len(decoding)
        for planned in self._policy.trees(decoding, num_other_rows, self.limits.max_model_len):
            sequence, tree = planned.sequence, planned.tree
            sequence.num_worthwhile = len(tree)
            size = min(len(tree), budget)
            while sequence.num_blocks_to_allocate(len(sequence.tokens) + size) > self.pool.num_free:
                size -= 1
            sequence.tree, sequence.tree_values = tree.first(size), planned.values[:size]
            sequence.tree_drafters = planned.drafters[:size]
            self._extend(sequence, len(sequence.tokens) + size)
            budget -= size

    # --- emit, part by part ---

    def _release(self, group: SequenceGroup) -> None:
        """Free the batch indices and blocks of all its sequences; it is no longer running."""
        for sequence in group.sequences:
            del self._by_index[sequence.batch_index]
            heapq.heappush(self._free_indices, sequence.batch_index)
            self.pool.free(sequence.release_kv())
        self._admitted.remove(group)
        group.restart()

    def check_integrity(self) -> None:
        """Blocks, batch indices and sequences agree, and no finished sequence is left."""
        self.pool.check_integrity([s.block_table for s in self.running], shared_blocks(self.running))
        held = {s.batch_index: s for group in self._admitted for s in group.sequences}
        assert sorted([*held, *self._free_indices]) == list(range(self.limits.max_running)), "batch indices are lost"
        assert held == self._by_index
        self.waiting.check_integrity()
        for sequence in (*(group.root for group in self.waiting), *self.running):
            sequence.check_integrity()
            assert sequence.finish_reason is None


def _by_group(results: Seq[StepResult]) -> dict[SequenceGroup, list[StepResult]]:
    """The results of each group, groups in the order of their first result."""
    found: dict[SequenceGroup, list[StepResult]] = {}
    for result in results:
        found.setdefault(result.sequence.group, []).append(result)
    return found
