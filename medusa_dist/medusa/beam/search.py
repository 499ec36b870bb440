"""Beam search, and how many levels verified Medusa trees advance it in one step.

Owns the search itself (`advance`) and its traversal of verified trees (`traverse_beams`). Pure. Not here:
log-probabilities (engine/beam/select.py), sequences and KV blocks (engine/beam/group.py).
W beams are active at a time, all of one length. A level is one step of plain beam search: the most likely continuations
of every beam, ranked together. Scores are sums of the base model's log-probabilities only, so it does not matter how
the rows of the next level were made: if each of the W chosen continuations is a verified node of some beam's tree, its
row is available, and the search advances another level in the same step. At the first level where one is missing it
stops. The result is that of plain beam search, whatever was drafted.
The rules are those of transformers' `_beam_search` (generation/utils.py), which also names the parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medusa_dist.medusa.trees.tree import ROOT, Tree
from medusa_dist.outputs import FinishReason, Hypothesis

Ranked = Sequence[tuple[int, float]]  # (token, log-probability) of one beam's most likely continuations


@dataclass(frozen=True, slots=True)
class BeamRules:
    """Parameters of a search. ends: tokens that end a hypothesis. max_tokens: length at which all of them end."""

    width: int
    max_tokens: int
    ends: frozenset[int] = frozenset()
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    @property
    def num_candidates(self) -> int:
        """Continuations ranked per level: enough for W active beams even if all end tokens are among them."""
        return max(2, 1 + len(self.ends)) * self.width


@dataclass(frozen=True, slots=True)
class Search:
    """State between two levels: outputs and scores of the active beams and finished hypotheses, each best first."""

    outputs: tuple[tuple[int, ...], ...] = ((),)
    scores: tuple[float, ...] = (0.0,)
    finished: tuple[Hypothesis, ...] = ()
    is_over: bool = False


def advance(search: Search, rules: BeamRules, ranked: Sequence[Ranked]) -> tuple[Search, tuple[int, ...]]:
    """One level: the search after it, and for each active beam, which previous beam it continues.

    ranked[b]: at least min(V, num_candidates) continuations of beam b, the most likely of all V; none is -inf. Ties go
    to the better beam, then to the lower token.
    A finished hypothesis has the score sum / length ** length_penalty, including its end token. It must be among the W
    best candidates; the rest only fill up the beams.
    """
    candidates = sorted(
        (-(score + log_p), beam, token)
        for beam, (score, continuations) in enumerate(zip(search.scores, ranked, strict=True))
        for token, log_p in continuations
    )[: rules.num_candidates]
    length = len(search.outputs[0]) + 1
    is_last = length == rules.max_tokens
    finished = list(search.finished)
    for negative, beam, token in candidates[: rules.width]:
        if is_last or token in rules.ends:
            reason = FinishReason.STOP if token in rules.ends else FinishReason.LENGTH
            worth = -negative / length**rules.length_penalty
            finished.append(Hypothesis((*search.outputs[beam], token), worth, reason))
    finished.sort(key=lambda hypothesis: -hypothesis.score)  # stable: of equal ones the earlier first
    del finished[rules.width :]
    if is_last:
        return Search((), (), tuple(finished), is_over=True), ()
    active = [c for c in candidates if c[2] not in rules.ends][: rules.width]
    after = Search(
        outputs=tuple((*search.outputs[beam], token) for _, beam, token in active),
        scores=tuple(-negative for negative, _, _ in active),
        finished=tuple(finished),
    )
    return replace(after, is_over=_is_over(after, rules, length)), tuple(beam for _, beam, _ in active)


def _is_over(search: Search, rules: BeamRules, length: int) -> bool:
    """Whether W hypotheses are finished and, unless early_stopping is true, no beam is estimated to beat them.

    That estimate is transformers' heuristic, which is wrong at times by design: a beam's score is taken at the current
    length, or, with "never" and a penalty that favours length, at the maximum length.
    """
    if len(search.finished) < rules.width:
        return False
    if rules.early_stopping is True:
        return True
    favours_length = rules.early_stopping == "never" and rules.length_penalty > 0.0
    best_length = rules.max_tokens if favours_length else length
    best: float = search.scores[0] / best_length**rules.length_penalty
    return best <= search.finished[-1].score


@dataclass(frozen=True, slots=True)
class BeamFrontier:
    """A beam during the traversal: at `node` of the tree of beam `source`, with this output so far."""

    group: int
    source: int
    node: int
    output: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    """A beam after the traversal: it continues the previous beam `source` along these nodes of its tree.

    ahead: the node of its last token, if that was verified too, at a level that was incomplete because of another beam.
    """

    source: int
    nodes: tuple[int, ...] = ()
    ahead: int | None = None

    @property
    def last_node(self) -> int:
        """The deepest node on its path; ROOT if none."""
        return self.nodes[-1] if self.nodes else ROOT


@dataclass(frozen=True, slots=True)
class BeamTraversal:
    """One group's path in one step. num_levels >= 1; all levels but the last were completely verified.

    forks: of the active beams, best first, as in search.outputs; empty when the search is over.
    used[b]: nodes of beam b's tree that complete levels passed through, in rising order.
    chosen: for each level that did not end the search, the beams that continued: the previous beam, and the tokens
    after it.
    """

    search: Search
    forks: tuple[Fork, ...]
    num_levels: int
    used: tuple[tuple[int, ...], ...]
    chosen: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class BeamState:
    """One request's beams before a step, and their trees in the order of search.outputs."""

    search: Search
    rules: BeamRules
    trees: tuple[Tree, ...]


def traverse_beams(
    groups: Sequence[BeamState], rank: Callable[[list[BeamFrontier]], Sequence[Ranked]]
) -> list[BeamTraversal]:
    """Advance all groups, level by level, as far as their verified trees allow; at least one level each.

    rank is called once per level, for all beams of all active groups; `advance` says what it returns.
    """
    traversals = [
        BeamTraversal(group.search, tuple(Fork(beam) for beam in range(len(group.trees))), 0, ((),) * len(group.trees))
        for group in groups
    ]
    active = list(range(len(groups)))
    while active:
        frontiers = [
            BeamFrontier(index, fork.source, fork.last_node, output)
            for index in active
            for fork, output in zip(traversals[index].forks, traversals[index].search.outputs, strict=True)
        ]
        ranked = iter(rank(frontiers))
        next_active = []
        for index in active:
            traversals[index], is_complete = _level(
                groups[index], traversals[index], [next(ranked) for _ in traversals[index].forks]
            )
            if is_complete:
                next_active.append(index)
        active = next_active
    return traversals


def _level(group: BeamState, traversal: BeamTraversal, ranked: Sequence[Ranked]) -> tuple[BeamTraversal, bool]:
    """One level of one group; True if every active beam is at a verified node."""
    search, parents = advance(traversal.search, group.rules, ranked)
    forks = tuple(traversal.forks[parent] for parent in parents)
    after = replace(traversal, search=search, forks=forks, num_levels=traversal.num_levels + 1)
    if search.is_over:
        return replace(after, forks=()), False
    known = len(group.search.outputs[0])
    paths = [(fork.source, output[known:]) for fork, output in zip(forks, search.outputs, strict=True)]
    after = replace(after, chosen=(*traversal.chosen, tuple(paths)))
    nodes = [
        group.trees[fork.source].children.get(fork.last_node, {}).get(output[-1])
        for fork, output in zip(forks, search.outputs, strict=True)
    ]
    reached = [node for node in nodes if node is not None]
    if len(reached) < len(nodes):
        ahead = (replace(fork, ahead=node) for fork, node in zip(forks, nodes, strict=True))
        return replace(after, forks=tuple(ahead)), False
    used = [list(of_beam) for of_beam in traversal.used]
    for fork, node in zip(forks, reached, strict=True):
        used[fork.source].append(node)
    return (
        replace(
            after,
            forks=tuple(Fork(fork.source, (*fork.nodes, node)) for fork, node in zip(forks, reached, strict=True)),
            used=tuple(tuple(sorted(of_beam)) for of_beam in used),
        ),
        True,
    )
