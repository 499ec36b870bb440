"""TreePolicy: which trees a step verifies, chosen over the whole batch within the budget.

Owns the use of trees and budget (medusa/trees/) for a batch. Not here: whether drafting pays (draft_gate.py), what a
step costs (cost_model.py), drafting (engine/drafters/), blocks and tokens (scheduler/scheduler.py).
"""

import sys
from collections.abc import Callable
from collections.abc import Sequence as Seq

from medusa_dist.config import HEADS, LOOKUP, SpeculationConfig
from medusa_dist.engine.beam.policy import BeamPolicy
from medusa_dist.engine.spec.cost_model import CostModel
from medusa_dist.engine.spec.draft_gate import DraftGate
from medusa_dist.engine.spec.draft_policy import DraftCounts, PlannedTree
from medusa_dist.engine.state.acceptance_tracker import RETRY_EVERY
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.trees.budget import StepCost, best_budget
from medusa_dist.medusa.trees.calibration import Calibration, labels_of, lookup_calibration
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.merged import drafters_of, merged
from medusa_dist.medusa.trees.tree import any_path, best_tree, static_tree, values_of
from medusa_dist.ops.attention.padded import KEY_CHUNK
from medusa_dist.outputs import TreeReason


class TreePolicy:
    """The DraftPolicy of one engine. cost: None always verifies max_nodes (no cost curve was measured).

    key_chunk: a tree must not extend past a multiple of this many KV indices (AttentionBackend.tree_alignment); None:
    no limit.
    """

    def __init__(
        self, config: SpeculationConfig, cost: StepCost | None = None, key_chunk: int | None = KEY_CHUNK
    ) -> None:
        self.config = config
        self.counts = DraftCounts()
        self.cost_model = CostModel(cost)
        self.gate = DraftGate(self.cost_model, is_static=config.mode == "static")
        self.calibrations: dict[str, Calibration] = {HEADS: Calibration(), LOOKUP: lookup_calibration()}
        self._key_chunk = key_chunk
        self._beams = BeamPolicy(config.max_nodes)

    @property
    def measured_cost(self) -> StepCost | None:
        """Seconds of a step by number of rows, measured at start-up; None if not measured."""
        return self.cost_model.measured

    def trees(self, decoding: list[Sequence], num_other_rows: int, max_model_len: int) -> list[PlannedTree]:
        """A tree for each sequence that has candidates and can use them."""
        self.gate.planned(0)
        for notes in (s.notes for s in decoding if s.notes is not None):
            notes.begin(len(decoding))
        limits = [self._limits(s, max_model_len) for s in decoding]
        drafted = [(s, at) for s, at in zip(decoding, limits, strict=True) if s.candidates and at[1]]
        if not drafted:
            return []
        if self.config.mode == "static":
            return [self._static(s, *limit) for s, limit in drafted if HEADS in s.candidates]
        alone = [(s, limit) for s, limit in drafted if not s.is_beam]
        calibrated = self._calibrated([s for s, _ in alone])
        ranked = [self._dynamic(s, *limit, parts) for (s, limit), parts in zip(alone, calibrated, strict=True)]
        beams = self._beams.trees([(s, limit) for s, limit in drafted if s.is_beam])
        ranked += [PlannedTree(*one, [(HEADS,)] * len(one[1])) for one in beams]
        if self.cost_model.measured is None:
            return ranked
        for planned in ranked:
            planned.sequence.num_ranked = len(planned.tree)
        sizes, speed_up = self._sizes(ranked, len(decoding), num_other_rows)
        self.gate.planned(sum(sizes))
        for planned, size in zip(ranked, sizes, strict=True):
            if planned.sequence.notes is not None:
                planned.sequence.notes.plan(size, speed_up)
        return [
            PlannedTree(s, tree.first(size), values[:size], drafters[:size])
            for (s, tree, values, drafters), size in zip(ranked, sizes, strict=True)
        ]

    def _sizes(self, ranked: list[PlannedTree], num_decoding: int, num_other_rows: int) -> tuple[list[int], float]:
        """How many nodes of each tree the budget covers, and the predicted speed-up over no drafts."""
        # The values of each sequence are in falling order, so the best n of all are the first few of each.
        values = sorted((-value, index) for index, planned in enumerate(ranked) for value in planned.values)
        predicted = self.gate.discounted([-value for value, _ in values])
        with_heads = [planned for planned in ranked if HEADS in planned.sequence.candidates]
        cost = self.cost_model.of(num_decoding, bool(with_heads))
        count, speed_up = best_budget(predicted, num_decoding, num_other_rows, cost)
        for planned in with_heads:
            self.gate.drafted(planned.values, self._values_without_heads(planned))
        sizes = [0] * len(ranked)
        for _, index in values[:count]:
            sizes[index] += 1
        self._beams.round([(planned.sequence, planned.values) for planned in ranked], sizes)
        return sizes, speed_up

    def learn(self, results: Seq[StepResult]) -> None:
        """Learn which drafts were accepted; called before the scheduler drops the trees."""
        self._beams.learn(results)
        self.gate.verified(sum(len(r.sequence.tree) for r in results))
        for sequence, hits in ((r.sequence, r.hits) for r in results if len(r.sequence.tree)):
            # The scheduler may have cut the tree: only its first nodes were verified.
            values = sequence.tree_values[: len(sequence.tree)]
            expected = sum(values)
            if sequence.notes is not None:
                sequence.notes.values = values
            sequence.tree_values = ()
            self.counts.num_expected += expected
            if HEADS in sequence.candidates:
                sequence.acceptance.learn(len(hits), self.config.min_accepted)
            # Trees under a grammar contain forced tokens and lack guesses that do not fit; typical acceptance has other
            # acceptance probabilities.
            is_usual = sequence.matcher is None and sequence.request.params.acceptance == "exact"
            if sequence.candidates and is_usual:
                self.gate.accepted(expected, len(hits))
                for name, own in sequence.candidates.items():
                    self.calibrations[name].learn(labels_of(sequence.tree, hits, own), sequence.sampling_mode)

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """Record the time of a step without prompt tokens, drafting excluded."""
        self.cost_model.observe(num_sequences, num_nodes, seconds)

    def observe_drafting(self, drafter: str, num_sequences: int, seconds: float) -> None:
        """Record the time of drafting in a step with this many sequences."""
        if drafter == HEADS:
            self.cost_model.observe_drafting(num_sequences, seconds)

    def select_for_drafting(self, drafter: str, results: list[StepResult]) -> list[StepResult]:
        """The sequences to draft for. With the heads: none if they do not pay for the batch, else all but the paused
        ones."""
        if not results:
            return []
        useful = [r for r in results if _num_left(r.sequence) > 1]  # a last token needs no draft
        if drafter == LOOKUP:
            _note_drafting(results, useful, useful, None)
            return useful
        if not self.gate.should_draft(len(results)):
            self.counts.num_steps_without_drafts += 1
            _note_drafting(results, useful, [], TreeReason.NO_GAIN)
            return []
        is_retry = self.gate.num_asked % RETRY_EVERY == 0
        selected = [r for r in useful if is_retry or not self._group_is_paused(r.sequence)]
        self.counts.num_paused_sequence_steps += len(useful) - len(selected)
        _note_drafting(results, useful, selected, TreeReason.PAUSED)
        return selected

    def is_paused(self, sequence: Sequence) -> bool:
        """Whether the sequence's recent acceptance is too low to draft for it."""
        return sequence.acceptance.is_paused(self.config.min_accepted)

    def _group_is_paused(self, sequence: Sequence) -> bool:
        """Beams pause together: a level that lacks one beam's draft is lost for all of them (medusa/beam/search.py)."""
        return all(self.is_paused(one) for one in sequence.group.running)

    def _limits(self, sequence: Sequence, max_model_len: int) -> tuple[int, int]:
        """Most nodes and greatest depth that can be useful now.

        A node at depth d becomes output token d + 1 of this step at best, so nodes deeper than the remaining output are
        useless. The KV indices of a tree stay inside one chunk of keys (ops/attention/padded.py explains why).
        """
        known = len(sequence.tokens)
        left = min(max_model_len - known, _num_left(sequence))
        chunk = self._key_chunk
        return self.config.most_nodes if chunk is None else chunk - known % chunk, left - 1

    def _dynamic(self, sequence: Sequence, max_nodes: int, max_depth: int, calibrated: list[Candidates]) -> PlannedTree:
        if sequence.matcher is not None and (forced := sequence.matcher.forced()[:max_depth]):
            calibrated = [part.with_forced_prefix(forced) for part in calibrated]
        most = min(max_nodes, self.config.max_nodes)
        tree, values = best_tree(merged(calibrated), most, max_depth, may_follow=_fits(sequence))
        if sequence.notes is not None:
            full = TreeReason.MAX_NODES if most == self.config.max_nodes else TreeReason.ROOM
            sequence.notes.offer(len(tree), full if len(tree) == most else TreeReason.ALL)
        if sequence.matcher is None and len(sequence.candidates) == 1:  # it guessed every node
            return PlannedTree(sequence, tree, values, [tuple(sequence.candidates)] * len(tree))
        return PlannedTree(sequence, tree, values, drafters_of(tree.tokens, tree.parents, sequence.candidates))

    def _calibrated(self, sequences: list[Sequence]) -> list[list[Candidates]]:
        """Each sequence's candidates with calibrated confidences, in their order. Those of a drafter have lists of one
        length, so that all of them are calibrated together."""
        found: list[dict[str, Candidates]] = [dict(s.candidates) for s in sequences]
        for name, calibration in self.calibrations.items():
            own = [i for i, parts in enumerate(found) if name in parts]
            if own:
                parts, modes = [found[i][name] for i in own], [sequences[i].sampling_mode for i in own]
                for i, part in zip(own, calibration.calibrated_together(parts, modes), strict=True):
                    found[i][name] = part
        return [list(parts.values()) for parts in found]

    def _values_without_heads(self, planned: PlannedTree) -> Seq[float]:
        """The values of the tree that this step would have without the heads. Beams have no other drafter."""
        sequence, tree, _, _ = planned
        others = [
            self.calibrations[name].calibrated(part, sequence.sampling_mode)
            for name, part in sequence.candidates.items()
            if name != HEADS
        ]
        if not others:
            return ()
        return best_tree(merged(others), len(tree), max(tree.depths, default=0), may_follow=_fits(sequence))[1]

    def _static(self, sequence: Sequence, max_nodes: int, max_depth: int) -> PlannedTree:
        assert self.config.tree is not None
        candidates = sequence.candidates[HEADS]
        tree = static_tree(candidates, self.config.tree, max_nodes, max_depth, _fits(sequence))
        drafters = [(HEADS,)] * len(tree)
        if sequence.notes is not None:
            sequence.notes.offer(len(tree), TreeReason.STATIC)
        if sequence.matcher is not None:
            return PlannedTree(sequence, tree, (), drafters)
        calibrated = self.calibrations[HEADS].calibrated(candidates, sequence.sampling_mode)
        return PlannedTree(sequence, tree, values_of(tree, calibrated), drafters)


def _fits(sequence: Sequence) -> Callable[[tuple[int, ...]], bool]:
    """Which draft paths are worth verifying: the model's choice obeys the grammar, so no others can be accepted."""
    return any_path if sequence.matcher is None else sequence.matcher.fits


def _num_left(sequence: Sequence) -> int:
    """How many more tokens the request may emit."""
    most = sequence.request.params.max_tokens
    return sys.maxsize if most is None else most - sequence.num_output_tokens


def _note_drafting(
    results: list[StepResult], useful: list[StepResult], selected: list[StepResult], otherwise: TreeReason | None
) -> None:
    """Note why sequences may have no drafts. otherwise: the reason of those not selected; None: lookup, whose lack of a
    guess counts only if the heads said nothing."""
    explained = [result.sequence for result in results if result.sequence.notes is not None]
    if not explained:
        return
    can_use, drafted = ({id(result.sequence) for result in some} for some in (useful, selected))
    for sequence in explained:
        notes = sequence.notes
        assert notes is not None
        if id(sequence) not in can_use:
            notes.undrafted = TreeReason.LAST_TOKEN
        elif otherwise is not None:
            notes.undrafted = TreeReason.NO_GUESS if id(sequence) in drafted else otherwise
        elif notes.undrafted is TreeReason.OFF:
            notes.undrafted = TreeReason.NO_GUESS
