"""Beam search, and how far Medusa trees carry it in one step.

Owns the search itself (`advance`) and its walk through verified trees (`walk_beams`); pure. Not here: log-probabilities
(engine/beam/select.py), sequences and KV blocks (engine/beam/group.py).
W beams go on at a time, all of one length. A level is one step of plain beam search: every beam's likeliest
continuations, ranked together. Scores are sums of the base model's log-probabilities and of nothing else, so it does
not matter how the next level's rows were made: if each of the W chosen continuations is a verified node of some beam's
tree, its row is there already, and the search advances another level in the same step. At the first level where one is
missing it stops. The result is that of plain beam search, whatever was drafted.
The rules are those of transformers' `_beam_search` (generation/utils.py), which also names the parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medusa_dist.medusa.trees.tree import ROOT, Tree
from medusa_dist.outputs import FinishReason, Hypothesis

Ranked = Sequence[tuple[int, float]]  # (token, log-probability) of one beam's likeliest continuations


@dataclass(frozen=True, slots=True)
class BeamRules:
    """What a search is asked. ends: tokens that end a hypothesis. max_tokens: at which all of them end."""

    width: int
    max_tokens: int
    ends: frozenset[int] = frozenset()
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    @property
    def num_candidates(self) -> int:
        """Continuations that are ranked at a level: so many that W of them go on even if all ends are among them."""
        return max(2, 1 + len(self.ends)) * self.width


@dataclass(frozen=True, slots=True)
class Search:
    """Between two levels: output and score of the beams that go on, best first, and what is finished, best first."""

    outputs: tuple[tuple[int, ...], ...] = ((),)
    scores: tuple[float, ...] = (0.0,)
    finished: tuple[Hypothesis, ...] = ()
    is_over: bool = False


def advance(search: Search, rules: BeamRules, ranked: Sequence[Ranked]) -> tuple[Search, tuple[int, ...]]:
    """One level: the search after it, and for each beam that goes on, which one it continues.

    ranked[b]: at least min(V, num_candidates) continuations of beam b, the likeliest of all V; none is -inf. Of equal
    scores the better beam's goes first, then the lower token.
    A finished hypothesis is worth score / length ** length_penalty, its end counted. It must be among the W best
    candidates; the rest only fill up the beams.
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
    onward = [c for c in candidates if c[2] not in rules.ends][: rules.width]
    after = Search(
        outputs=tuple((*search.outputs[beam], token) for _, beam, token in onward),
        scores=tuple(-negative for negative, _, _ in onward),
        finished=tuple(finished),
    )
    return replace(after, is_over=_is_over(after, rules, length)), tuple(beam for _, beam, _ in onward)


def _is_over(search: Search, rules: BeamRules, length: int) -> bool:
    """Whether W hypotheses are finished and, unless the first W are enough, no beam is deemed able to beat them.

    That judgement is transformers' heuristic, wrong at times by design: a beam's worth is taken at the present length,
    or, with "never" and a penalty that favours length, at the greatest one.
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
    """A beam during the walk: it stands at `node` of the tree of beam `source`, with this output so far."""

    group: int
    source: int
    node: int
    output: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    """A beam after the walk: it continues the beam `source` of before, along these nodes of its tree.

    ahead: the node of its last token, if that was verified too, at the level that another beam's token held up.
    """

    source: int
    nodes: tuple[int, ...] = ()
    ahead: int | None = None

    @property
    def last_node(self) -> int:
        """The deepest node on its way; ROOT if none."""
        return self.nodes[-1] if self.nodes else ROOT


@dataclass(frozen=True, slots=True)
class BeamTraversal:
    """One group's way in one step. num_levels >= 1; all but the last were complete among the verified nodes.

    forks: of the beams that go on, best first, as in search.outputs; empty when the search is over.
    used[b]: nodes of beam b's tree that a complete level went through, in rising order.
    chosen: of each level that did not end the search, what went on: the beam of before, and the tokens behind it.
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
    """Advance all groups, level by level, as far as their verified trees carry them; at least one level each.

    rank is asked once a level, for all beams of all groups still going on: see `advance` for what it returns.
    """
    walks = [
        BeamTraversal(group.search, tuple(Fork(beam) for beam in range(len(group.trees))), 0, ((),) * len(group.trees))
        for group in groups
    ]
    going = list(range(len(groups)))
    while going:
        stands = [
            BeamFrontier(index, fork.source, fork.last_node, output)
            for index in going
            for fork, output in zip(walks[index].forks, walks[index].search.outputs, strict=True)
        ]
        ranked = iter(rank(stands))
        onward = []
        for index in going:
            walks[index], is_complete = _level(groups[index], walks[index], [next(ranked) for _ in walks[index].forks])
            if is_complete:
                onward.append(index)
        going = onward
    return walks


def _level(group: BeamState, walk: BeamTraversal, ranked: Sequence[Ranked]) -> tuple[BeamTraversal, bool]:
    """One level of one group; True if each beam that goes on stands at a verified node."""
    search, parents = advance(walk.search, group.rules, ranked)
    forks = tuple(walk.forks[parent] for parent in parents)
    after = replace(walk, search=search, forks=forks, num_levels=walk.num_levels + 1)
    if search.is_over:
        return replace(after, forks=()), False
    known = len(group.search.outputs[0])
    paths = [(fork.source, output[known:]) for fork, output in zip(forks, search.outputs, strict=True)]
    after = replace(after, chosen=(*walk.chosen, tuple(paths)))
    nodes = [
        group.trees[fork.source].children.get(fork.last_node, {}).get(output[-1])
        for fork, output in zip(forks, search.outputs, strict=True)
    ]
    reached = [node for node in nodes if node is not None]
    if len(reached) < len(nodes):
        ahead = (replace(fork, ahead=node) for fork, node in zip(forks, nodes, strict=True))
        return replace(after, forks=tuple(ahead)), False
    used = [list(of_beam) for of_beam in walk.used]
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
