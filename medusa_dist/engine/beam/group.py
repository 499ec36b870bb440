"""BeamGroup: the beams of one request, and the KV blocks they share.

Owns what a fork does to sequences and block tables. Pure host work. Not here: the search (medusa/beam/search.py), when
beams run and how they get blocks (scheduler/scheduler.py).
Each beam is a Sequence with its own batch index. All beams run in the same steps, have the same length, and are
admitted, preempted and freed together. A preempted group restarts from its prompt: its only state is W KV caches.
Blocks: beams with a common prefix share the blocks that are full of it; they only read them. The rest, at most one
block plus the draft tokens just accepted, is copied when a beam forks (copy-on-write by whole blocks). A beam that
replaces another owns its part of the source's blocks at once and gets the rest when it is scheduled; the rows are
copied at the start of that plan from wherever they are then.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from itertools import zip_longest

from medusa_dist.engine.beam.result import BeamResult, Memory
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.sequence import Sequence, SequenceGroup, StepResult
from medusa_dist.errors import RequestError
from medusa_dist.medusa.beam.beam_tree import Levels
from medusa_dist.medusa.beam.search import BeamRules, Search
from medusa_dist.medusa.trees.calibration import BEAMS
from medusa_dist.medusa.trees.tree import EMPTY
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.outputs import Output, SpeculationStats
from medusa_dist.request import Request

Moves = list[tuple[int, int]]  # (source, target) KV slots


class BeamGroup(SequenceGroup):
    """root: the sequence that waits, computes the prompt, and is the first beam.

    beams: the active beams, in the order of search.outputs. idle: the other sequences, from admission to the first
    fork.
    memory: known results of the next levels. reach: how deep to draft.
    """

    is_beam_search = True

    def __init__(self, request: Request, rules: BeamRules, number: int = 0) -> None:
        super().__init__(request, number)
        self.rules = rules
        self.stats = SpeculationStats()
        self.reach = 2
        self.root = Sequence(self, list(request.prompt_ids))
        self.restart()

    def restart(self) -> None:
        """Reset to the prompt, with nothing computed."""
        self.search = Search()
        self.beams = [self.root]
        self.idle: list[Sequence] = []
        self._sequences = [self.root]
        self.heads: list[int] = []  # head that guessed each output token; 0 = none
        self.memory: Memory = {}
        self.levels: Levels = []
        self.was_drafted = False  # in the last step
        self.root.tokens = list(self.request.prompt_ids)

    @property
    def size(self) -> int:
        """Number of batch indices that it needs: one per beam."""
        return self.rules.width

    @property
    def sampling_mode(self) -> int:
        """Beams are calibrated apart: several guesses are right."""
        return BEAMS

    @property
    def sequences(self) -> list[Sequence]:
        """All its sequences that have a batch index, in an order that forks do not change."""
        return self._sequences

    @property
    def running(self) -> list[Sequence]:
        """The root until the first fork, then all beams."""
        return [sequence for sequence in self._sequences if sequence.tokens]

    def admit(self) -> list[Sequence]:
        """Create its W sequences: the root, and those that wait for the first fork."""
        self.idle = [Sequence(self, []) for _ in range(self.rules.width - 1)]
        self._sequences = [*self.beams, *self.idle]
        return self._sequences

    def advance(self, results: Seq[StepResult], limits: Limits, pool: BlockPool) -> Output | None:
        """Fork the beams as the search decided; returns the output if the search is over."""
        beam_results = [result for result in results if isinstance(result, BeamResult)]
        traversal, width = beam_results[0].traversal, len(beam_results)
        depth = max((d for one in beam_results for d in one.sequence.tree.depths), default=0)
        hits = [width] * (traversal.num_levels - 1) + [0] * (depth + 1 - traversal.num_levels)
        drafted = sum(len(one.sequence.tree) for one in beam_results)
        per_head = map(sum, zip_longest(*(v.sequence.tree.num_per_depth for v in beam_results), fillvalue=0))
        self.stats += SpeculationStats(width, drafted, tuple(hits), tuple(per_head))
        self.heads += [*range(1, traversal.num_levels), 0]
        self.search, self.memory, self.was_drafted = traversal.search, beam_results[0].memory, drafted > 0
        if traversal.search.is_over:
            for sequence in self._sequences:
                sequence.finish_reason = traversal.search.finished[0].finish_reason
            return self._output()
        for one in sorted(beam_results, key=lambda v: v.sequence is v.source):
            _fork(one, pool)  # those that continue in place come last: they are read before they change
        for one in beam_results:
            one.sequence.candidates, one.sequence.tree = {}, EMPTY
        self.beams, self.idle = [one.sequence for one in beam_results], []
        return None

    def _output(self) -> Output:
        best = self.search.finished[0]
        return Output(
            request_id=self.request.request_id,
            token_ids=best.token_ids,
            heads=tuple(self.heads[: len(best.token_ids)]),
            finish_reason=best.finish_reason,
            stats=self.stats,
            num_cached_tokens=self.root.num_cached_tokens,
            hypotheses=self.search.finished,
        )


def beam_groups(sequences: Iterable[Sequence]) -> list[BeamGroup]:
    """The beam searches among the sequences, each once, in this order."""
    return list(dict.fromkeys(s.group for s in sequences if isinstance(s.group, BeamGroup)))


def _fork(verdict: BeamResult, pool: BlockPool) -> None:
    """Make verdict.sequence continue as verdict.source along the accepted path."""
    target, source, accepted = verdict.sequence, verdict.source, verdict.accepted
    known, nodes = len(source.tokens), accepted.nodes
    if target is source:
        target.pending_copies = [(known + node, known + i) for i, node in enumerate(nodes) if node != i]
        target.tokens += accepted.tokens
        target.num_computed_tokens += len(nodes)
        return
    num_shared = known // BLOCK_TOKENS
    columns = [*range(num_shared * BLOCK_TOKENS, known), *(known + node for node in nodes)]
    before, target.block_table = target.block_table, source.block_table[:num_shared]
    pool.add_owner(target.block_table)
    pool.free(before)
    target.fork_slots = [source.slot_at(column) for column in columns]
    target.tokens = [*source.tokens, *accepted.tokens]
    target.num_computed_tokens = known + len(nodes)
    target.block_hashes = source.block_hashes[:num_shared]
    target.num_hashed_blocks = min(source.num_hashed_blocks, num_shared)
    target.num_broadcast_blocks = _common(before[: target.num_broadcast_blocks], target.block_table)
    target.pending_copies = []


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def with_forks(moves: Moves, sequences: Iterable[Sequence]) -> Moves:
    """The copies of a plan: those within a sequence, and those that fill the new blocks of forked beams. A block may
    come from a sequence that was preempted after its own copies were queued; those are dropped."""
    forks: Moves = []
    for sequence in sequences:
        first = sequence.num_computed_tokens - len(sequence.fork_slots)
        forks += [(row, sequence.slot_at(first + i)) for i, row in enumerate(sequence.fork_slots)]
        sequence.fork_slots = []
    taken = {target for _, target in forks}
    return [move for move in moves if move[1] not in taken] + forks


def shared_blocks(sequences: Iterable[Sequence]) -> frozenset[int]:
    """Blocks that several beams of one group may own: those that are full for all of them."""
    full: set[int] = set()
    growing: set[int] = set()
    for sequence in sequences:
        if sequence.group.size > 1:
            num_full = sequence.num_computed_tokens // BLOCK_TOKENS
            full.update(sequence.block_table[:num_full])
            growing.update(sequence.block_table[num_full:])
    return frozenset(full - growing)


def beam_group(request: Request, limits: Limits, num_blocks: int, number: int = 0) -> BeamGroup:
    """The group of a request with beam_width. Raises RequestError if num_blocks blocks can never serve it."""
    params, num_prompt, width = request.params, len(request.prompt_ids), request.params.beam_width
    assert width is not None
    most = limits.max_model_len - num_prompt
    rules = BeamRules(
        width=width,
        max_tokens=most if params.max_tokens is None else min(most, params.max_tokens),
        ends=frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else limits.eos_ids),
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
    )
    if width > limits.max_running:
        raise RequestError(
            f"beam_width {width} needs {width} sequences at once, the service runs {limits.max_running}; lower it, or "
            "raise max_running of the service",
            "beam_width",
        )
    if rules.num_candidates + len(rules.ends) > limits.vocab_size:
        raise RequestError(
            f"beam_width {width} ranks {rules.num_candidates} continuations, the vocabulary has {limits.vocab_size}; "
            "lower it, or give fewer stop_token_ids",
            "beam_width",
        )
    shared = num_prompt // BLOCK_TOKENS
    needed = shared + width * (blocks_for(num_prompt + rules.max_tokens) - shared)
    if needed > num_blocks:
        raise RequestError(
            f"{width} beams of prompt plus max_tokens may need {needed} KV blocks, the cache has {num_blocks}; "
            "lower beam_width or max_tokens, or raise kv_cache_tokens of the service",
            "beam_width",
        )
    return BeamGroup(request, rules, number)
