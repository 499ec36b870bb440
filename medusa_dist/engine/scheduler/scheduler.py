"""Scheduler: who runs in a step, with which rows, drafts and KV blocks; and what the step's result does to them.

Owns waiting and running sequences, slots and blocks. Rank 0 only; pure host work, no tensors. Not here: the wire
(plan.py), the rule for how many drafts (medusa/trees/budget.py), what tokens the model chose (choose.py).
One rule covers prefill, chunked prefill, decoding and trees: computed tokens catch up with known + drafted tokens.
Order: decoding sequences, then prompts under way, then waiting ones, each by priority, then first come first served.
When blocks run out, trees shrink first (they take only what is left over), then the sequence of least priority, the
youngest of these, is preempted and recomputes. Nobody is preempted for one who still waits. The beams of a request come
and go together (beam.py).
"""

import heapq
from collections.abc import Sequence as Seq

import numpy as np

from medusa_dist.engine.beam.group import Moves, beam_group, settle_beams, shared_blocks, with_forks
from medusa_dist.engine.beam.result import BeamResult
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.prompt_logprobs import PromptLogprobs
from medusa_dist.engine.scheduler.plan_builder import build_plan
from medusa_dist.engine.spec.tree_policy import Speculation
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for
from medusa_dist.engine.state.limits import Limits, check_request
from medusa_dist.engine.state.matcher import Matcher
from medusa_dist.engine.state.sequence import NOT_IN_BATCH, Sequence
from medusa_dist.engine.state.step_result import StepResult
from medusa_dist.engine.state.waiting_queue import WaitingQueue
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.tree import EMPTY
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request


class Scheduler:
    """All sequences of one engine, from submit to their last output."""

    def __init__(self, limits: Limits, pool: BlockPool, speculation: Speculation, generation: int) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []  # in order of admission
        self.num_preemptions = 0
        self._num_submitted = 0
        self._speculation = speculation
        self._generation = generation
        self._free_slots = list(range(limits.max_running))
        self._by_slot: dict[int, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def submit(self, request: Request, output_ids: tuple[int, ...] = (), matcher: Matcher | None = None) -> None:
        """Queue a request; output_ids were emitted before, matcher stands after them.

        Raises RequestError if it can never be served.
        """
        check_request(request, self.limits, self.pool.num_usable)
        sequence = Sequence.of(request, output_ids, self._num_submitted)
        sequence.matcher = matcher
        if request.params.beam_width is not None:
            sequence.group = beam_group(sequence, self.limits, self.pool.num_usable)
        self.waiting.add(sequence)
        self._num_submitted += 1

    def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is; nothing happens if it is not here (idempotent)."""
        leaders = (s for s in (*self.waiting, *self.running) if s is s.leader)
        for sequence in [s for s in leaders if s.request.request_id == request_id]:
            sequence.finish_reason = FinishReason.ABORT
            if sequence.batch_index == NOT_IN_BATCH:
                self.waiting.remove(sequence)
            else:
                self._free(sequence)

    def schedule(self, step: int) -> Plan:
        """Decide the next step. Call only if has_work."""
        moves = self._flush_copies()
        admitted: list[Sequence] = []
        chosen = self._choose_running()
        budget = self.limits.max_batched_tokens - sum(chain for _, chain in chosen)
        if len(self.running) == len(chosen):  # nobody was left behind for lack of room: look at the queue
            for sequence in self._admit(budget):
                chain = min(sequence.num_uncomputed_tokens, budget)
                self._extend(sequence, sequence.num_computed_tokens + chain)
                budget -= chain
                admitted += sequence.family
                chosen.append((sequence, chain))
        self._plant_trees(chosen, budget)
        copies: Ints = np.array(with_forks(moves, (s for s, _ in chosen)), dtype=np.int64).reshape(-1, 2)
        return build_plan((self._generation, step), chosen, admitted, (copies[:, 0].copy(), copies[:, 1].copy()))

    def emit(self, plan: Plan, verdicts: Seq[StepResult], prompt_scores: PromptLogprobs | None = None) -> list[Output]:
        """Apply a step's result: tokens, KV to keep, scores of prompts, finished sequences."""
        if prompt_scores is not None:
            begins = np.cumsum(plan.num_prompt_logprobs) - plan.num_prompt_logprobs
            for slot, begin, count in zip(plan.batch_indices, begins, plan.num_prompt_logprobs, strict=True):
                sequence = self._by_slot[int(slot)]
                num_top = sequence.request.params.prompt_logprobs or 0
                sequence.prompt_logprobs += prompt_scores.entries(int(begin), int(count), num_top)
        for slot, chain in zip(plan.batch_indices, plan.num_new_tokens, strict=True):
            self._by_slot[int(slot)].num_computed_tokens += int(chain)
        outputs = [self._apply(verdict) for verdict in verdicts if not isinstance(verdict, BeamResult)]
        self.running += [v.sequence for v in verdicts if not v.sequence.tokens]  # beams after their first fork
        for sequence, output in settle_beams(verdicts, self.pool):
            self._free(sequence)
            outputs.append(output)
        return outputs

    def wanted_sequences(self, plan: Plan) -> list[Sequence]:
        """The plan's sequences whose scores are wanted, in its order."""
        return [self._by_slot[int(slot)] for slot in plan.batch_indices[plan.needs_logits == 1]]

    # --- schedule, part by part ---

    def _flush_copies(self) -> Moves:
        """KV slots to move for the paths accepted last step; then tree columns behind the known tokens are free.

        Ranks move rows before they write any, so a block freed here can be someone else's in the same plan.
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
        """Tell the prefix cache of blocks that are full of verified tokens, now that their rows are where they belong.

        Rows that move do so at the beginning of this plan, before anybody reads.
        """
        full = min(sequence.num_computed_tokens // BLOCK_TOKENS, len(sequence.block_table))
        for index in range(sequence.num_hashed_blocks, full):
            self.pool.cache_block(sequence.block_table[index], sequence.prefix_hashes(full)[index])
        sequence.num_hashed_blocks = max(sequence.num_hashed_blocks, full)

    def _choose_running(self) -> list[tuple[Sequence, int]]:
        """(sequence, known tokens to compute now), decoding ones first; preempts where blocks run out."""
        budget = self.limits.max_batched_tokens
        chosen: list[tuple[Sequence, int]] = []
        for sequence in sorted(self.running, key=lambda s: (s.num_uncomputed_tokens > 1, s.priority_key)):
            chain = min(sequence.num_uncomputed_tokens, budget)
            if (
                sequence.batch_index != NOT_IN_BATCH
                and chain > 0
                and self._make_room(sequence, sequence.num_computed_tokens + chain)
            ):
                self._extend(sequence, sequence.num_computed_tokens + chain)
                chosen.append((sequence, chain))
                budget -= chain
        return [(sequence, chain) for sequence, chain in chosen if sequence.batch_index != NOT_IN_BATCH]

    def _extend(self, sequence: Sequence, num_columns: int) -> None:
        """Give it the blocks that num_columns tokens need and it lacks; there are enough."""
        sequence.block_table += self.pool.allocate(
            sequence.num_blocks_to_allocate(num_columns), behind=sequence.block_table
        )

    def _make_room(self, sequence: Sequence, num_columns: int) -> bool:
        """Preempt the last in turn until there are blocks for num_columns; False if `sequence` itself had to go."""
        while sequence.num_blocks_to_allocate(num_columns) > self.pool.num_free:
            last = max(self.running, key=lambda s: s.priority_key).leader
            self._free(last)
            last.num_preemptions += 1
            self.num_preemptions += 1
            self.waiting.add(last)
            if last is sequence.leader:
                return False
        return True

    def _admit(self, budget: int) -> list[Sequence]:
        """Waiting sequences that get a slot now: room for all their known tokens, in order, none overtakes."""
        admitted: list[Sequence] = []
        promised = 0  # blocks that those admitted here will take
        while self.waiting and self._free_slots and budget > 0:
            sequence = self.waiting.first
            # The last known token is computed in any case: its scores are wanted.
            # Rows of a prompt that is scored are all computed.
            num_known = 0 if sequence.wants_prompt_logprobs else (len(sequence.tokens) - 1) // BLOCK_TOKENS
            prefix = self.pool.find_cached(sequence.prefix_hashes(num_known))
            new = blocks_for(min(len(sequence.tokens) + 1, self.limits.max_model_len)) - len(prefix)
            num_seats = sequence.request.params.beam_width or 1
            new += num_seats - 1  # each fork copies a block
            if num_seats > len(self._free_slots) or new + promised + self.pool.count_idle(prefix) > self.pool.num_free:
                break
            self.pool.add_owner(prefix)
            promised += new
            sequence.block_table = prefix
            sequence.num_computed_tokens = len(prefix) * BLOCK_TOKENS
            sequence.num_hashed_blocks = len(prefix)
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
            budget -= sequence.num_uncomputed_tokens
            self.waiting.remove(sequence)
            for seat in [sequence] if sequence.group is None else sequence.group.sit_down():
                seat.batch_index = heapq.heappop(self._free_slots)
                self._by_slot[seat.batch_index] = seat
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _plant_trees(self, chosen: list[tuple[Sequence, int]], budget: int) -> None:
        """Give each sequence that reaches its root a tree, within the rows and blocks that are left."""
        decoding = [s for s, chain in chosen if chain == s.num_uncomputed_tokens]
        for sequence, _ in chosen:
            sequence.tree = EMPTY
        num_other_rows = sum(chain for _, chain in chosen) - len(decoding)
        for sequence, tree in self._speculation.trees(decoding, num_other_rows, self.limits.max_model_len):
            size = min(len(tree), budget)
            while sequence.num_blocks_to_allocate(len(sequence.tokens) + size) > self.pool.num_free:
                size -= 1
            sequence.tree = tree.first(size)
            self._extend(sequence, len(sequence.tokens) + size)
            budget -= size

    # --- emit, part by part ---

    def _apply(self, verdict: StepResult) -> Output:
        sequence, accepted = verdict.sequence, verdict.accepted
        known, prompt_logprobs = len(sequence.tokens), sequence.take_prompt_logprobs()
        tokens: list[int] = []
        if sequence.request.params.max_tokens == 0:  # the prompt was all that was asked for
            sequence.finish_reason, accepted = FinishReason.LENGTH, Accepted((), ())
        for token in accepted.tokens:
            sequence.tokens.append(token)
            tokens.append(token)
            sequence.check_finished(tuple(tokens), self.limits.eos_ids, self.limits.max_model_len)
            if sequence.finish_reason is not None:
                break
        nodes = accepted.nodes[: len(tokens)]
        heads = tuple(range(1, len(nodes) + 1)) + (0,) * (len(tokens) - len(nodes))
        hits = [0] * max(sequence.tree.depths, default=0)
        hits[: len(nodes)] = [1] * len(nodes)
        stats = SpeculationStats(int(bool(tokens)), len(sequence.tree), tuple(hits), sequence.tree.num_per_depth)
        sequence.stats += stats
        if sequence.finish_reason is None:
            # Accepted node i stands at column known + nodes[i] and belongs at known + i.
            moves = [(known + node, known + i) for i, node in enumerate(nodes) if node != i]
            sequence.pending_copies = moves
            sequence.num_computed_tokens += len(nodes)
            sequence.candidates, sequence.tree = None, EMPTY
            if sequence.matcher is not None:
                sequence.matcher.keep(tuple(tokens))
        else:
            self._name_full_blocks(sequence)  # the drafts accepted just now are not in place, and are left out
            self._free(sequence)
        return Output(
            request_id=sequence.request.request_id,
            token_ids=tuple(tokens),
            heads=heads,
            logprobs=verdict.logprobs[: len(tokens)],
            finish_reason=sequence.finish_reason,
            stats=stats,
            num_cached_tokens=sequence.num_cached_tokens,
            prompt_logprobs=prompt_logprobs,
            is_complete=sequence.is_complete,
            error=sequence.error,
        )

    def _free(self, sequence: Sequence) -> None:
        """Take slot and blocks back, of all its family; it is no longer running."""
        for one in sequence.family:
            del self._by_slot[one.batch_index]
            heapq.heappush(self._free_slots, one.batch_index)
            self.pool.free(one.release_kv())
        self.running = [s for s in self.running if s.batch_index != NOT_IN_BATCH]
        if sequence.group is not None:
            sequence.group.begin()

    def check_integrity(self) -> None:
        """Blocks, slots and sequences agree; nothing is pending for nobody."""
        self.pool.check_integrity([s.block_table for s in self.running], shared_blocks(self.running))
        seated = [one for s in self.running if s is s.leader for one in s.family]
        slots = [s.batch_index for s in seated]
        assert {s.batch_index for s in self.running} <= set(slots)
        assert sorted([*slots, *self._free_slots]) == list(range(self.limits.max_running)), "slots are lost or doubled"
        assert {s.batch_index: s for s in seated} == self._by_slot
        self.waiting.check_integrity()
        for sequence in (*self.waiting, *self.running):
            sequence.check_integrity()
            assert sequence.finish_reason is None
