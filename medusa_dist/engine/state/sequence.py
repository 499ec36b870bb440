"""Sequence: the life of one Request in the engine, on the host.

Owns tokens, computed count, block table and drafts of one sequence. Not here: when it runs
(engine/scheduler/scheduler.py). Columns (places in the block table), as half-open ranges over known tokens n =
len(tokens):
  [0, num_computed)   KV is there, of verified tokens
  [num_computed, n)   known tokens whose KV is not computed; while decoding just one, the root
  [n, n + nodes)      during a step: drafted nodes
Invariant between steps: num_computed < n.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medusa_dist.engine.state.acceptance_tracker import AcceptanceTracker
from medusa_dist.engine.state.block_pool import blocks_for, chain_hash, salt_name
from medusa_dist.engine.state.matcher import Matcher
from medusa_dist.errors import RequestError
from medusa_dist.medusa.trees.tree import EMPTY, Candidates, Tree
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.outputs import FinishReason, SpeculationStats, TokenLogprobs
from medusa_dist.request import Request

if TYPE_CHECKING:
    from medusa_dist.engine.beam.group import BeamGroup

NOT_IN_BATCH = -1


@dataclass
class Sequence:
    """Made by the scheduler at submit. `tokens` starts as prompt + output known from before a restart."""

    request: Request
    tokens: list[int]
    num_prompt_tokens: int
    number: int = 0  # how many came before it
    num_computed_tokens: int = 0
    batch_index: int = NOT_IN_BATCH
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(
        default_factory=list
    )  # chain hashes of its full blocks, as far as they were needed
    num_hashed_blocks: int = 0  # how many of `blocks` the prefix cache was told of, or gave
    num_cached_tokens: int = 0  # prompt tokens whose KV the prefix cache had when it was first admitted
    num_broadcast_blocks: int = 0  # how many of `blocks` the ranks know
    candidates: Candidates | None = None  # what the heads guess after the root; None: nothing drafted
    tree: Tree = EMPTY  # what this step verifies
    pending_copies: list[tuple[int, int]] = field(default_factory=list)  # (source, target) columns, not moved yet
    wants_prompt_logprobs: bool = False  # log-probabilities of its prompt are asked for, and not delivered yet
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1, 2, ...; until delivered
    group: "BeamGroup | None" = field(default=None, repr=False, compare=False)  # of a beam; None: no beam search
    fork_slots: list[int] = field(default_factory=list)  # KV slots of its last computed rows, which stand elsewhere
    acceptance: AcceptanceTracker = field(default_factory=AcceptanceTracker)  # what drafting has brought it
    finish_reason: FinishReason | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    num_preemptions: int = 0
    matcher: Matcher | None = None  # its place in its grammar, after the known tokens
    is_complete: bool = False  # the grammar left nothing to add
    error: RequestError | None = None  # why it could not go on

    @classmethod
    def of(cls, request: Request, output_ids: tuple[int, ...] = (), number: int = 0) -> "Sequence":
        """A waiting sequence; output_ids are tokens that were emitted before (a restart, a lost group)."""
        tokens = [*request.prompt_ids, *output_ids]
        # The prompt's scores left with the first output.
        scores_prompt = request.params.prompt_logprobs is not None and not output_ids
        return cls(request, tokens, len(request.prompt_ids), number, wants_prompt_logprobs=scores_prompt)

    @property
    def priority_key(self) -> tuple[int, int]:
        """Its place among all sequences: the least is served first, the greatest preempted first."""
        return self.request.priority, self.number

    @property
    def family(self) -> "list[Sequence]":
        """The sequences that come and go with it, itself among them: all beams of its request, or it alone."""
        return [self] if self.group is None else self.group.seats

    @property
    def leader(self) -> "Sequence":
        """The one of its family that waits in the queue."""
        return self if self.group is None else self.group.root

    @property
    def num_output_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens whose KV is not computed; 1 while decoding."""
        return len(self.tokens) - self.num_computed_tokens

    def count_prompt_logprobs(self, chain: int) -> int:
        """How many of the next `chain` rows are followed by a prompt token whose score is asked for."""
        return (
            max(0, min(chain, self.num_prompt_tokens - 1 - self.num_computed_tokens))
            if self.wants_prompt_logprobs
            else 0
        )

    def take_prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...]:
        """The prompt's scores, once: None for its first token, which nothing precedes. () if not asked for."""
        if not self.wants_prompt_logprobs:
            return ()
        assert len(self.prompt_logprobs) == self.num_prompt_tokens - 1
        scores, self.prompt_logprobs, self.wants_prompt_logprobs = self.prompt_logprobs, [], False
        return None, *scores

    def check_finished(self, new: tuple[int, ...], eos_ids: tuple[int, ...], max_model_len: int) -> None:
        """Set finish_reason, and what explains it, if the last known token is the end; new: the tokens of this step."""
        params = self.request.params
        state = None if self.matcher is None else self.matcher.state(new)
        if new[-1] in params.stop_token_ids or (new[-1] in eos_ids and not params.ignore_eos):
            self.finish_reason = FinishReason.STOP
        elif state is not None and state.is_complete:
            self.finish_reason, self.is_complete = FinishReason.STOP, True
        elif self.num_output_tokens == params.max_tokens or len(self.tokens) >= max_model_len:
            self.finish_reason = FinishReason.LENGTH
        elif self.matcher is not None and state is not None and state.error:
            self.error = self.matcher.grammar.error(state.error)
            self.finish_reason = FinishReason.ABORT

    def slot_at(self, column: int) -> int:
        """Physical KV slot of a column."""
        return self.block_table[column // BLOCK_TOKENS] * BLOCK_TOKENS + column % BLOCK_TOKENS

    def num_blocks_to_allocate(self, num_columns: int) -> int:
        """Blocks to take so that num_columns columns have a place."""
        return max(0, blocks_for(num_columns) - len(self.block_table))

    def prefix_hashes(self, num_blocks: int) -> list[bytes]:
        """Chain hashes of the first num_blocks blocks, all full of known tokens."""
        assert num_blocks * BLOCK_TOKENS <= len(self.tokens)
        while len(self.block_hashes) < num_blocks:
            begin = len(self.block_hashes) * BLOCK_TOKENS
            before = self.block_hashes[-1] if self.block_hashes else salt_name(self.request.cache_salt)
            self.block_hashes.append(chain_hash(before, self.tokens[begin : begin + BLOCK_TOKENS]))
        return self.block_hashes[:num_blocks]

    def release_kv(self) -> list[int]:
        """Give up slot, blocks and drafts, keep the tokens; returns the blocks. Preemption: it recomputes later."""
        blocks, self.block_table = self.block_table, []
        self.batch_index, self.num_computed_tokens, self.num_broadcast_blocks, self.num_hashed_blocks = NOT_IN_BATCH, 0, 0, 0
        self.candidates, self.tree, self.pending_copies, self.prompt_logprobs = None, EMPTY, [], []
        self.fork_slots = []
        return blocks

    def check_integrity(self) -> None:
        """The invariants above."""
        assert 0 <= self.num_computed_tokens < len(self.tokens) or self.finish_reason is not None
        if self.batch_index == NOT_IN_BATCH:
            assert not self.block_table and self.num_computed_tokens == 0 and not self.pending_copies
        else:
            assert blocks_for(self.num_computed_tokens - len(self.fork_slots)) <= len(self.block_table)
