"""Sequence: one token sequence in the engine; SequenceGroup: the sequences of one request.

Owns a sequence's tokens, KV bookkeeping and drafts, and what a step decides for it. Not here: when it runs
(engine/scheduler/scheduler.py), what a step's result does to a group (single_sequence.py, engine/beam/group.py).
KV indices (positions in the block table), as half-open ranges over known tokens n = len(tokens):
  [0, num_computed_tokens)   KV is there, of verified tokens
  [num_computed_tokens, n)   known tokens whose KV is not computed; while decoding just one, the root
  [n, n + len(tree))         during a step: draft tokens
Invariant between steps: num_computed_tokens < n.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from medusa_dist.engine.state.acceptance_tracker import AcceptanceTracker
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for, chain_hash, salt_name
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.matcher import Matcher
from medusa_dist.errors import RequestError
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.tree import EMPTY, Candidates, Tree
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.outputs import FinishReason, Output, SpeculationStats, TokenLogprobs
from medusa_dist.request import Request

NOT_IN_BATCH = -1


@dataclass(eq=False)  # a sequence is equal to itself alone, and a key of dicts
class Sequence:
    """Made by its group. `tokens` starts as prompt + output known from before a restart."""

    group: "SequenceGroup" = field(repr=False)
    tokens: list[int]
    num_computed_tokens: int = 0
    batch_index: int = NOT_IN_BATCH
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chain hashes of its full blocks, as far as needed
    num_hashed_blocks: int = 0  # how many of `blocks` the prefix cache was told of, or gave
    num_cached_tokens: int = 0  # prompt tokens whose KV the prefix cache had when it was first admitted
    num_broadcast_blocks: int = 0  # how many of `blocks` the ranks know
    candidates: Candidates | None = None  # what the heads guess after the root; None: nothing drafted
    tree: Tree = EMPTY  # what this step verifies
    tree_values: Seq[float] = ()  # expected acceptance of its nodes, calibrated
    pending_copies: list[tuple[int, int]] = field(default_factory=list)  # (source, target) columns, not moved yet
    wants_prompt_logprobs: bool = False  # log-probabilities of its prompt are asked for, and not delivered yet
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1, 2, ...; until delivered
    fork_slots: list[int] = field(default_factory=list)  # KV slots of its last computed rows, which stand elsewhere
    acceptance: AcceptanceTracker = field(default_factory=AcceptanceTracker)  # what drafting has brought it
    finish_reason: FinishReason | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    matcher: Matcher | None = None  # its place in its grammar, after the known tokens
    is_complete: bool = False  # the grammar left nothing to add
    error: RequestError | None = None  # why it could not go on

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.group.request

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def priority_key(self) -> tuple[int, int]:
        """Its group's place among all: the least is served first, the greatest preempted first."""
        return self.group.priority_key

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
        left = self.num_prompt_tokens - 1 - self.num_computed_tokens
        return max(0, min(chain, left)) if self.wants_prompt_logprobs else 0

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
        self.batch_index, self.num_computed_tokens, self.num_broadcast_blocks, self.num_hashed_blocks = (
            NOT_IN_BATCH,
            0,
            0,
            0,
        )
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


@dataclass(frozen=True)
class StepResult:
    """What a step decided for one sequence: the accepted path, and one logprob entry per token if asked for."""

    sequence: Sequence
    accepted: Accepted
    logprobs: tuple[TokenLogprobs, ...]
    last_row: int  # logits row of the deepest accepted node (or the root): the heads read its hidden state next

    @property
    def hits(self) -> tuple[int, ...]:
        """Nodes of the sequence's own tree that were accepted."""
        return self.accepted.nodes


class SequenceGroup(ABC):
    """The sequences of one request: one, or W beams. They are admitted, preempted and freed together.

    root waits in the queue and computes the prompt. sequences are those that hold a batch index once admitted.
    number: how many requests were submitted before it.
    """

    root: Sequence

    def __init__(self, request: Request, number: int = 0) -> None:
        self.request = request
        self.number = number
        self.num_preemptions = 0

    @property
    def priority_key(self) -> tuple[int, int]:
        """Its place among all groups: the least is served first, the greatest preempted first."""
        return self.request.priority, self.number

    @property
    def size(self) -> int:
        """Batch indices that it needs."""
        return 1

    @property
    def sequences(self) -> list[Sequence]:
        """All that hold a batch index."""
        return [self.root]

    @property
    def running(self) -> list[Sequence]:
        """Those of `sequences` that have tokens to compute."""
        return self.sequences

    def admit(self) -> list[Sequence]:
        """Make its further sequences; returns all that get a batch index now."""
        return self.sequences

    @abstractmethod
    def restart(self) -> None:
        """Its KV is gone: begin again from what is kept."""

    @abstractmethod
    def advance(self, results: Seq[StepResult], limits: Limits, pool: BlockPool) -> Output | None:
        """Apply a step's results, one per running sequence; None if there is nothing to say yet."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be computed for it."""
        return self.root.finish_reason is not None
