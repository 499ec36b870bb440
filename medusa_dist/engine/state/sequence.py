"""Sequence, StepResult and SequenceGroup: the state of requests in the engine, on the host.

Owns tokens, num_computed_tokens, block table and drafts of a sequence. Not here: how a group applies results
(single_sequence.py, beam/group.py), when it runs (scheduler/scheduler.py).
KV indices (positions in the block table), as half-open ranges over n = len(tokens) known tokens:
  [0, num_computed_tokens)   KV is computed, for verified tokens
  [num_computed_tokens, n)   known tokens whose KV is not computed; while decoding just one, the root
  [n, n + len(tree))         during a step: draft tokens
Invariant between steps: num_computed_tokens < n.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from medusa_dist.engine.state.acceptance_tracker import AcceptanceTracker
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for, chain_hash, salt_name
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.matcher import Matcher
from medusa_dist.engine.state.step_notes import StepNotes
from medusa_dist.errors import RequestError
from medusa_dist.medusa.lookup.suffix_index import SuffixIndex
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.calibration import GREEDY, SAMPLED
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.tree import EMPTY, Tree
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.outputs import FinishReason, Output, SpeculationStats, TokenLogprobs
from medusa_dist.request import Request

NOT_IN_BATCH = -1


@dataclass(eq=False)  # compared by identity, so it can be a dict key
class Sequence:
    """One sequence of a group. `tokens` starts as the prompt, plus output known from before a restart."""

    group: "SequenceGroup" = field(repr=False)
    tokens: list[int]
    num_computed_tokens: int = 0
    batch_index: int = NOT_IN_BATCH
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chain hashes of its full blocks, computed as needed
    num_hashed_blocks: int = 0  # leading blocks that the prefix cache knows or provided
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache at the first admission
    num_broadcast_blocks: int = 0  # leading blocks that all ranks know
    candidates: dict[str, Candidates] = field(default_factory=dict)  # drafter -> its guesses after the root
    tree: Tree = EMPTY  # draft tokens verified in this step
    tree_values: Seq[float] = ()  # expected acceptance of each node, calibrated
    tree_drafters: Seq[tuple[str, ...]] = ()  # who guessed each node
    num_ranked: int = 0  # nodes found for this step, before the budget cut the tree; 0 if it did not
    num_worthwhile: int = 0  # nodes that the budget left, before the step's tokens and blocks cut them
    suffixes: SuffixIndex = field(default_factory=SuffixIndex, repr=False)  # where its last tokens occurred before
    pending_copies: list[tuple[int, int]] = field(default_factory=list)  # (source, target) KV indices, not yet copied
    wants_prompt_logprobs: bool = False  # prompt logprobs are requested and not yet delivered
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1, 2, ...; until delivered
    fork_slots: list[int] = field(default_factory=list)  # KV slots of its last computed tokens, not in its blocks yet
    acceptance: AcceptanceTracker = field(default_factory=AcceptanceTracker)  # acceptance of its drafts
    finish_reason: FinishReason | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    matcher: Matcher | None = None  # position in its grammar, after the known tokens
    is_complete: bool = False  # the grammar allows nothing more
    error: RequestError | None = None  # why it could not continue
    notes: StepNotes | None = None  # for the records of its steps; None: its request does not ask for them

    @property
    def request(self) -> Request:
        """The request of its group."""
        return self.group.request

    @property
    def num_prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.request.prompt_ids)

    @property
    def priority_key(self) -> tuple[int, int]:
        """Sort key of its group: the smallest is served first, the largest is preempted first."""
        return self.group.priority_key

    @property
    def is_beam(self) -> bool:
        """Whether it is a beam of a search."""
        return self.group.is_beam_search

    @property
    def sampling_mode(self) -> int:
        """The sampling mode of its group."""
        return self.group.sampling_mode

    @property
    def num_output_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens whose KV is not computed; 1 while decoding."""
        return len(self.tokens) - self.num_computed_tokens

    def count_prompt_logprobs(self, chain: int) -> int:
        """How many of the next `chain` tokens are followed by a prompt token whose logprob is requested."""
        left = self.num_prompt_tokens - 1 - self.num_computed_tokens
        return max(0, min(chain, left)) if self.wants_prompt_logprobs else 0

    def take_prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...]:
        """The prompt logprobs, returned once: None for the first token, which nothing precedes. () if not requested."""
        if not self.wants_prompt_logprobs:
            return ()
        assert len(self.prompt_logprobs) == self.num_prompt_tokens - 1
        logprobs, self.prompt_logprobs, self.wants_prompt_logprobs = self.prompt_logprobs, [], False
        return None, *logprobs

    def check_finished(self, new: tuple[int, ...], eos_ids: tuple[int, ...], max_model_len: int) -> None:
        """Set finish_reason, and its explanation, if the last known token is the end. new: tokens of this step."""
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

    def slot_at(self, kv_index: int) -> int:
        """Physical KV slot of a KV index."""
        return self.block_table[kv_index // BLOCK_TOKENS] * BLOCK_TOKENS + kv_index % BLOCK_TOKENS

    def num_blocks_to_allocate(self, num_kv_tokens: int) -> int:
        """Blocks to allocate so that the block table holds num_columns tokens."""
        return max(0, blocks_for(num_kv_tokens) - len(self.block_table))

    def prefix_hashes(self, num_blocks: int) -> list[bytes]:
        """Chain hashes of the first num_blocks blocks, all full of known tokens."""
        assert num_blocks * BLOCK_TOKENS <= len(self.tokens)
        while len(self.block_hashes) < num_blocks:
            begin = len(self.block_hashes) * BLOCK_TOKENS
            before = self.block_hashes[-1] if self.block_hashes else salt_name(self.request.cache_salt)
            self.block_hashes.append(chain_hash(before, self.tokens[begin : begin + BLOCK_TOKENS]))
        return self.block_hashes[:num_blocks]

    def release_kv(self) -> list[int]:
        """Give up batch index, blocks and drafts, keep the tokens. Returns the blocks."""
        blocks, self.block_table = self.block_table, []
        self.batch_index, self.num_computed_tokens, self.num_broadcast_blocks, self.num_hashed_blocks = (
            NOT_IN_BATCH,
            0,
            0,
            0,
        )
        self.candidates, self.tree, self.pending_copies, self.prompt_logprobs = {}, EMPTY, [], []
        self.fork_slots = []
        if self.notes is not None:
            self.notes.restart()
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
    """The outcome of a step for one sequence: the accepted path, and one logprobs entry per token if requested."""

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

    root waits in the queue and computes the prompt. sequences are those that have a batch index once admitted.
    number: how many requests were submitted before it.
    """

    root: Sequence
    is_beam_search = False  # beams are scored, drafted and budgeted as one group (beam/)

    def __init__(self, request: Request, number: int = 0) -> None:
        self.request = request
        self.number = number
        self.submitted_at = time.monotonic()
        self.admitted_at: float | None = None  # to its first step; None again once its prefill was reported
        self.num_preemptions = 0

    @property
    def priority_key(self) -> tuple[int, int]:
        """Sort key among all groups: the smallest is served first, the largest is preempted first."""
        return self.request.priority, self.number

    @property
    def size(self) -> int:
        """Number of batch indices that it needs."""
        return 1

    @property
    def sampling_mode(self) -> int:
        """The mode under which its drafts are calibrated (medusa/trees/calibration.py)."""
        return SAMPLED if self.request.params.temperature > 0.0 else GREEDY

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences that have a batch index."""
        return [self.root]

    @property
    def running(self) -> list[Sequence]:
        """Those of `sequences` that have tokens to compute."""
        return self.sequences

    def admit(self) -> list[Sequence]:
        """Create its other sequences; returns all that get a batch index now."""
        return self.sequences

    def take_prefill_s(self) -> float | None:
        """Seconds since its first step, returned once: with its first token."""
        if self.admitted_at is None:
            return None
        seconds, self.admitted_at = time.monotonic() - self.admitted_at, None
        return seconds

    @abstractmethod
    def restart(self) -> None:
        """Called after its KV was released: reset to what is kept."""

    @abstractmethod
    def advance(self, results: Seq[StepResult], limits: Limits, pool: BlockPool) -> Output | None:
        """Apply a step's results, one per running sequence; None if there is no output yet."""

    @property
    def is_finished(self) -> bool:
        """Whether the request is finished."""
        return self.root.finish_reason is not None
