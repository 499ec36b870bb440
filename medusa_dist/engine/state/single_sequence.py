"""SingleSequence: the sequence group of a request without beam search.

Owns how a step's result changes the sequence: tokens, KV to keep, finish reason, output. Not here: which tokens are
accepted (spec/token_selector.py), when it runs (scheduler/scheduler.py).
"""

from collections import Counter
from collections.abc import Sequence as Seq
from itertools import chain

from medusa_dist.engine.state.block_pool import BlockPool
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.matcher import Matcher
from medusa_dist.engine.state.sequence import Sequence, SequenceGroup, StepResult
from medusa_dist.engine.state.step_notes import MAX_TOKENS, StepNotes
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.tree import EMPTY
from medusa_dist.outputs import FinishReason, Output, SpeculationStats, StepRecord, TreeReason
from medusa_dist.request import Request


class SingleSequence(SequenceGroup):
    """output_ids were emitted before (a restart, a lost rank group); matcher is positioned after them."""

    def __init__(
        self, request: Request, output_ids: tuple[int, ...] = (), number: int = 0, matcher: Matcher | None = None
    ) -> None:
        super().__init__(request, number)
        # Prompt logprobs were delivered with the first output.
        wants_prompt = request.params.prompt_logprobs is not None and not output_ids
        tokens = [*request.prompt_ids, *output_ids]
        notes = StepNotes() if request.explain else None
        self.root = Sequence(self, tokens, wants_prompt_logprobs=wants_prompt, matcher=matcher, notes=notes)

    def restart(self) -> None:
        """All tokens are kept and recomputed."""

    def advance(self, results: Seq[StepResult], limits: Limits, pool: BlockPool) -> Output:
        """Apply the accepted tokens up to the first that ends the sequence; queue the KV copies of drafts."""
        (result,) = results
        sequence, known = self.root, len(self.root.tokens)
        prompt_logprobs = sequence.take_prompt_logprobs()
        tokens = self._append(result.accepted, limits)
        nodes = result.accepted.nodes[: len(tokens)]
        stats = _count(sequence, nodes, len(tokens))
        sequence.stats += stats
        steps = () if sequence.notes is None else _records(sequence, sequence.notes, nodes, len(tokens))
        if sequence.finish_reason is None:
            # Accepted node i is at KV index known + nodes[i] and belongs at known + i.
            moves = [(known + node, known + i) for i, node in enumerate(nodes) if node != i]
            sequence.pending_copies = moves
            sequence.num_computed_tokens += len(nodes)
            sequence.candidates, sequence.tree = {}, EMPTY
            if sequence.matcher is not None:
                sequence.matcher.keep(tokens)
        return Output(
            request_id=self.request.request_id,
            token_ids=tokens,
            heads=tuple(range(1, len(nodes) + 1)) + (0,) * (len(tokens) - len(nodes)),
            logprobs=result.logprobs[: len(tokens)],
            finish_reason=sequence.finish_reason,
            stats=stats,
            num_cached_tokens=sequence.num_cached_tokens,
            prompt_logprobs=prompt_logprobs,
            is_complete=sequence.is_complete,
            error=sequence.error,
            steps=steps,
            prefill_s=self.take_prefill_s(),
        )

    def _append(self, accepted: Accepted, limits: Limits) -> tuple[int, ...]:
        """Append the accepted tokens until one ends the sequence; returns those appended."""
        sequence = self.root
        if self.request.params.max_tokens == 0:  # only the prompt was requested
            sequence.finish_reason = FinishReason.LENGTH
            return ()
        for count, token in enumerate(accepted.tokens, start=1):
            sequence.tokens.append(token)
            sequence.check_finished(accepted.tokens[:count], limits.eos_ids, limits.max_model_len)
            if sequence.finish_reason is not None:
                return accepted.tokens[:count]
        return accepted.tokens


def _count(sequence: Sequence, accepted: Seq[int], num_tokens: int) -> SpeculationStats:
    """Counts of this step: draft tokens and accepted ones, per depth and per drafter."""
    hits = [0] * max(sequence.tree.depths, default=0)
    hits[: len(accepted)] = [1] * len(accepted)
    drafters = sequence.tree_drafters[: len(sequence.tree)]  # the scheduler may have cut the tree
    return SpeculationStats(
        int(num_tokens > 0),
        len(sequence.tree),
        tuple(hits),
        sequence.tree.num_per_depth,
        Counter(chain.from_iterable(drafters)),
        Counter(chain.from_iterable(drafters[node] for node in accepted)) if accepted and drafters else Counter(),
    )


def _records(
    sequence: Sequence, notes: StepNotes, accepted: tuple[int, ...], num_tokens: int
) -> tuple[StepRecord, ...]:
    """The record of this step, whose tokens are appended already; none for a prompt alone, and far into the output."""
    if num_tokens == 0 or sequence.num_output_tokens - num_tokens >= MAX_TOKENS:
        return ()
    size = len(sequence.tree)
    reason = notes.reason(size, bool(sequence.candidates)) if sequence.request.params.speculation else TreeReason.OFF
    notes.undrafted = TreeReason.OFF  # until the policy says otherwise, which it does if there is a drafter
    drafters = sequence.tree_drafters[:size]  # the scheduler may have cut the tree
    return (notes.record(sequence.tree, drafters, accepted, num_tokens, reason),)
