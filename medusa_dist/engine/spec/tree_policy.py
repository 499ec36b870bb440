"""Which trees a step verifies: the sequences' candidates, ranked over the whole batch, cut by the budget.

Owns the policy that joins trees (medusa/trees/tree.py) and budget (medusa/trees/budget.py) to a batch, and the decision
whether heads run at all. Not here: blocks and rows (scheduler.py), running the heads (drafter.py), the record of a
single sequence (floor.py).
"""

import sys
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import chain

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.beam.policy import BeamPolicy
from medusa_dist.engine.state.acceptance_tracker import RETRY_EVERY
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.engine.state.step_result import StepResult
from medusa_dist.medusa.trees.budget import StepCost, best_budget
from medusa_dist.medusa.trees.calibration import BEAMS, GREEDY, SAMPLED, Calibration, labels_of
from medusa_dist.medusa.trees.cost_correction import CostCorrection, nearest_size
from medusa_dist.medusa.trees.tree import Tree, any_path, best_tree, static_tree, values_of
from medusa_dist.ops.attention.padded import KEY_CHUNK

_WORTH = 1.05  # predicted gain from which heads run: of forecasts near 1, those that are too high would be acted on
_SMOOTHING = 0.05  # of the moving average of what drafting takes, per batch size
_PROBE_EVERY = 128  # steps between two tries of what is not done now: 0.8 % of the steps
_WARM_UP = 16  # trees seen before what they promise is believed
_FORGET = 0.001  # a step: what was promised and accepted in the last thousand or so counts
_PRIOR = 2.0  # promised and accepted tokens that are always counted in
_REMEMBERED = 256  # trees whose promises say what drafts are worth now
_BATCHES = 16  # that those trees are dealt out to, at most, when a gain is foreseen
_ASK_AGAIN = 16  # steps between two looks at whether a batch size is worth drafting for


class Speculation:
    """One engine's policy. cost: None verifies max_nodes always (no curve was measured).

    key_chunk: columns at whose multiples a tree must end, None for nowhere (ops/attention.key_chunk).
    """

    def __init__(
        self, config: SpeculationConfig, cost: StepCost | None = None, key_chunk: int | None = KEY_CHUNK
    ) -> None:
        self.config = config
        self._key_chunk = key_chunk
        self.cost = cost
        self.calibration = Calibration()
        self.num_expected = 0.0  # accepted tokens that the verified trees promised, to compare with those accepted
        self._beams = BeamPolicy(config.max_nodes)
        self._promises: dict[int, Seq[float]] = {}  # of this step, by id of the sequence: its tree's values
        self.num_steps_without_drafts = 0  # steps after which the heads did not run: they would not have paid
        self.num_paused_sequence_steps = 0  # times a sequence was left out of drafting, for its own record
        self._recent: deque[Seq[float]] = deque(maxlen=_REMEMBERED)  # values of trees drafted lately, of any batch
        self._answers: dict[int, tuple[bool, int]] = {}  # batch size -> whether drafts pay, steps till asked again
        self._since_probe = 0
        self._num_asked = 0  # steps in which drafting was thought about
        self._num_planned = 0  # nodes of this step, before the scheduler cut them
        self._has_room = True  # whether the scheduler had rows and blocks for any of the last ones planned
        self._excess = CostCorrection()
        self._promised = self._accepted = 0.0  # drafts lately: what trees promised, and what became of it
        self._drafting: dict[int, float] = {}  # seconds, by the number of sequences

    def trees(self, decoding: list[Sequence], num_other_rows: int, max_model_len: int) -> list[tuple[Sequence, Tree]]:
        """A tree for each sequence that has candidates and use for them."""
        self._promises.clear()
        self._num_planned = 0
        limits = [self._limits(s, max_model_len) for s in decoding]
        drafted = [(s, at) for s, at in zip(decoding, limits, strict=True) if s.candidates is not None and at[1]]
        if not drafted:
            return []
        if self.config.mode == "static":
            planted = [(s, self._static(s, *limit)) for s, limit in drafted]
            self._promises = {id(s): self._foretold(s, tree) for s, tree in planted if s.matcher is None}
            return planted
        ranked = [(s, *self._dynamic(s, *limit)) for s, limit in drafted if s.group is None]
        ranked += self._beams.trees([(s, limit) for s, limit in drafted if s.group is not None])
        self._promises = {id(s): values for s, _, values in ranked}
        if self.cost is None:
            return [(s, tree) for s, tree, _ in ranked]
        cost = self._cost_of(self.cost, len(decoding))
        # Each sequence's values fall, so the best n of all are the first few of each.
        values = sorted(
            ((-value, index) for index, (_, _, values) in enumerate(ranked) for value in values),
        )
        count, _ = best_budget(self._kept([-value for value, _ in values]), len(decoding), num_other_rows, cost)
        self._recent.extend(values for _, _, values in ranked)
        sizes = [0] * len(ranked)
        for _, index in values[:count]:
            sizes[index] += 1
        self._beams.round(ranked, sizes)
        self._num_planned = sum(sizes)
        return [(s, tree.first(size)) for (s, tree, _), size in zip(ranked, sizes, strict=True)]

    def learn(self, verdicts: Seq[StepResult]) -> None:
        """See which drafts were accepted; before the scheduler takes the trees away."""
        if self._num_planned:
            self._has_room = any(len(v.sequence.tree) for v in verdicts)
        self._beams.learn(verdicts)
        self._promised *= 1.0 - _FORGET
        self._accepted *= 1.0 - _FORGET
        for sequence, hits in ((v.sequence, v.hits) for v in verdicts if len(v.sequence.tree)):
            # The scheduler may have cut the tree: the first nodes are what was verified.
            promised = sum(self._promises.get(id(sequence), ())[: len(sequence.tree)])
            self.num_expected += promised
            sequence.acceptance.learn(len(hits), self.config.min_accepted)
            # A grammar's trees hold tokens that no head guessed, and miss some that heads did; typical acceptance has
            # chances of its own.
            is_usual = sequence.matcher is None and sequence.request.params.acceptance == "exact"
            if sequence.candidates is not None and is_usual:
                self._promised += promised
                self._accepted += len(hits)
                self.calibration.learn(labels_of(sequence.tree, hits, sequence.candidates), _band(sequence))

    def observe(self, num_sequences: int, num_nodes: int, seconds: float) -> None:
        """See what a step without prompt rows took, drafting aside."""
        if self.cost is not None:
            self._excess.learn(num_sequences, num_nodes, seconds, self.cost(num_sequences + num_nodes))

    def observe_drafting(self, num_sequences: int, seconds: float) -> None:
        """See what making the candidates took in a step of so many sequences."""
        before = self._drafting.get(num_sequences, seconds)
        self._drafting[num_sequences] = before + _SMOOTHING * (seconds - before)

    def _cost_of(self, cost: StepCost, num_sequences: int) -> StepCost:
        """The measured curve and the time of drafting, as steps of so many sequences have turned out to be."""
        if self._drafting:
            known = nearest_size(self._drafting, num_sequences)
            further = cost.drafting(num_sequences) - cost.drafting(known)
            cost = cost.with_drafting(max(0.0, self._drafting[known] + further))
        return cost.raised(self._excess.offset(num_sequences), self._excess.fixed, self._excess.slope)

    @property
    def trust(self) -> float:
        """The share of the promises of verified trees that was kept lately, at most 1: how far they are believed."""
        return min(1.0, (self._accepted + _PRIOR) / (self._promised + _PRIOR))

    def select_for_drafting(self, verdicts: list[StepResult]) -> list[StepResult]:
        """Those whose sequences are drafted for now: none if the batch is not worth it, else all but hopeless ones."""
        if not verdicts:
            return []
        self._num_asked += 1
        if not self.should_draft(len(verdicts)):
            self.num_steps_without_drafts += 1
            return []
        useful = [v for v in verdicts if _num_left(v.sequence) > 1]  # a last token needs no draft
        is_retry = self._num_asked % RETRY_EVERY == 0
        worth = [v for v in useful if is_retry or not self._rests(v.sequence)]
        self.num_paused_sequence_steps += len(useful) - len(worth)
        return worth

    def _rests(self, sequence: Sequence) -> bool:
        """Beams rest together: a level that lacks one beam's draft is lost for all (medusa/beam/search.py)."""
        together = [sequence] if sequence.group is None else sequence.group.beams
        return all(one.acceptance.is_paused(self.config.min_accepted) for one in together)

    def should_draft(self, num_sequences: int) -> bool:
        """Whether the heads are worth running for a batch of this size.

        Rare probes keep the answer fresh: steps with drafts where they do not pay, and without where they do, which
        tell what drafts really cost. While prompts take all rows, or sequences all blocks, no tree can be planted.
        """
        if not self._has_room and self._num_asked % _ASK_AGAIN:
            return False
        if self.cost is None or self.config.mode == "static" or len(self._recent) < _WARM_UP:
            return True
        self._since_probe += 1
        if self._since_probe >= _PROBE_EVERY:
            self._since_probe = 0
            return not self._pays(num_sequences)
        return self._pays(num_sequences)

    def _pays(self, num_sequences: int) -> bool:
        """Whether a batch of this size gains by drafts as good as the latest, whatever batches those were for."""
        pays, steps = self._answers.get(num_sequences, (False, 0))
        if steps == 0:
            pays, steps = self.gain(num_sequences) >= _WORTH, _ASK_AGAIN
        self._answers[num_sequences] = pays, steps - 1
        return pays

    def gain(self, num_sequences: int) -> float:
        """By what factor drafts as good as the latest raise the tokens per second of so many sequences: the mean over
        the batches that can be made of them."""
        assert self.cost is not None and self._recent, "nothing was drafted yet"
        cost = self._cost_of(self.cost, num_sequences)
        trees = list(self._recent) * -(-num_sequences // len(self._recent))
        batches = [trees[i : i + num_sequences] for i in range(0, len(trees) - num_sequences + 1, num_sequences)]
        gains = [
            best_budget(self._kept(sorted(chain.from_iterable(batch), reverse=True)), num_sequences, 0, cost)[1]
            for batch in batches[-_BATCHES:]
        ]
        return sum(gains) / len(gains)

    def _limits(self, sequence: Sequence, max_model_len: int) -> tuple[int, int]:
        """Most nodes and greatest depth that can be of use now.

        A node at depth d becomes output d + 1 of this step at best, so deeper than what may still be emitted is waste;
        and a tree's columns stay inside one chunk of keys (ops/attention/padded.py: exactness).
        """
        known = len(sequence.tokens)
        left = min(max_model_len - known, _num_left(sequence))
        chunk = self._key_chunk
        return self.config.most_nodes if chunk is None else chunk - known % chunk, left - 1

    def _kept(self, values: list[float]) -> list[float]:
        trust = self.trust
        return [trust * value for value in values]

    def _dynamic(self, sequence: Sequence, max_nodes: int, max_depth: int) -> tuple[Tree, Seq[float]]:
        assert sequence.candidates is not None
        believed = self.calibration.believe(sequence.candidates, _band(sequence))
        if sequence.matcher is not None:
            believed = believed.led_by(sequence.matcher.forced()[:max_depth])
        return best_tree(believed, min(max_nodes, self.config.max_nodes), max_depth, may_follow=_fits(sequence))

    def _foretold(self, sequence: Sequence, tree: Tree) -> list[float]:
        assert sequence.candidates is not None
        return values_of(tree, self.calibration.believe(sequence.candidates, _band(sequence)))

    def _static(self, sequence: Sequence, max_nodes: int, max_depth: int) -> Tree:
        assert sequence.candidates is not None and self.config.tree is not None
        return static_tree(sequence.candidates, self.config.tree, max_nodes, max_depth, _fits(sequence))


def _fits(sequence: Sequence) -> Callable[[tuple[int, ...]], bool]:
    """Which drafted paths are worth a row: the model's choice obeys the grammar, so no others can be accepted."""
    return any_path if sequence.matcher is None else sequence.matcher.fits


def _num_left(sequence: Sequence) -> int:
    """How many tokens the request still asks for."""
    most = sequence.request.params.max_tokens
    return sys.maxsize if most is None else most - sequence.num_output_tokens


def _band(sequence: Sequence) -> int:
    if sequence.group is not None:
        return BEAMS
    return SAMPLED if sequence.request.params.temperature > 0.0 else GREEDY
