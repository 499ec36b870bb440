"""The pure search: against transformers' rules written out another way, against all hypotheses there are, and its walk
through any trees against plain steps."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_dist.medusa.beam.search import BeamFrontier, BeamRules, BeamState, Fork, Search, advance, traverse_beams
from medusa_dist.medusa.trees.tree import EMPTY, ROOT, Tree
from medusa_dist.outputs import FinishReason, Hypothesis

V = 11


def log_p(model: int, output: tuple[int, ...]) -> list[float]:
    """Any model: log-probabilities that are a pure function of the prefix."""
    rng = random.Random(f"{model} {output}")
    weights = [rng.random() ** 3 + 1e-3 for _ in range(V)]
    return [math.log(w / sum(weights)) for w in weights]


def ranked(model: int, output: tuple[int, ...], rules: BeamRules) -> list[tuple[int, float]]:
    pairs = sorted(enumerate(log_p(model, output)), key=lambda pair: (-pair[1], pair[0]))
    return pairs[: rules.num_candidates]


def plain(model: int, rules: BeamRules) -> list[Search]:
    """States after each level, up to the last."""
    states = [Search()]
    while not states[-1].is_over:
        last = states[-1]
        states.append(advance(last, rules, [ranked(model, output, rules) for output in last.outputs])[0])
    return states


def by_arrays(model: int, rules: BeamRules) -> list[tuple[tuple[int, ...], float]]:
    """transformers' loop in its own shape: fixed arrays of W, with -1e9 for whatever does not count."""
    width, never = rules.width, -1e9
    outputs, scores = [()] * width, np.array([0.0] + [never] * (width - 1))
    kept: list[tuple[int, ...]] = [()] * width
    kept_scores, is_kept = np.full(width, never), np.zeros(width, dtype=bool)
    for length in range(1, rules.max_tokens + 1):
        total = np.concatenate([np.array(log_p(model, o)) + s for o, s in zip(outputs, scores, strict=True)])
        best = np.argsort(-total, kind="stable")[: rules.num_candidates]
        new = [(*outputs[i // V], int(i % V)) for i in best]
        ends = np.array([o[-1] in rules.ends or length == rules.max_tokens for o in new])
        running = np.argsort(-(total[best] + ends * never), kind="stable")[:width]
        counts = ends & (np.arange(len(best)) < width)
        merged = np.concatenate([kept_scores, total[best] / length**rules.length_penalty + ~counts * never])
        order = np.argsort(-merged, kind="stable")[:width]
        kept = [[*kept, *new][i] for i in order]
        kept_scores, is_kept = merged[order], np.concatenate([is_kept, counts])[order]
        outputs, scores = [new[i] for i in running], (total[best] + ends * never)[running]
        far = rules.early_stopping == "never" and rules.length_penalty > 0
        best_running = scores[0] / (rules.max_tokens if far else length) ** rules.length_penalty
        can_improve = (best_running > np.where(is_kept, kept_scores.min(), never)).any()
        if not can_improve or (is_kept.all() and rules.early_stopping is True) or ends.all():
            break
    return list(zip(kept, kept_scores.tolist(), strict=True))


rules_of = st.builds(
    BeamRules,
    width=st.integers(1, 3),
    max_tokens=st.integers(1, 9),
    ends=st.frozensets(st.integers(0, V - 1), max_size=2),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
)


@settings(max_examples=200, deadline=None)
@given(model=st.integers(0, 10**6), rules=rules_of)
def test_search_equals_transformers_beam_search(model: int, rules: BeamRules) -> None:
    expected = by_arrays(model, rules)
    finished = plain(model, rules)[-1].finished
    assert [h.token_ids for h in finished] == [ids for ids, _ in expected]
    assert [h.score for h in finished] == pytest.approx([score for _, score in expected])
    assert len(finished) == rules.width
    for h in finished:
        assert h.finish_reason is (FinishReason.STOP if h.token_ids[-1] in rules.ends else FinishReason.LENGTH)


@pytest.mark.parametrize("ends", [frozenset(), frozenset({4}), frozenset({0, 7})])
def test_search_without_pruning_finds_the_best_hypotheses_of_all(ends: frozenset[int]) -> None:
    """Nothing is pruned, so the result is the top of all hypotheses of up to 3 tokens."""
    width = V**2
    rules = BeamRules(width, max_tokens=3, ends=ends, length_penalty=0.0, early_stopping="never")
    everything = []
    for length in (1, 2, 3):
        for output in itertools.product(range(V), repeat=length):
            if (output[-1] in ends or length == 3) and not ends & set(output[:-1]):
                everything.append((sum(log_p(1, output[:i])[t] for i, t in enumerate(output)), output))
    everything.sort(reverse=True)
    finished = plain(1, rules)[-1].finished
    assert [h.token_ids for h in finished] == [output for _, output in everything[:width]]
    assert finished[0].score == pytest.approx(everything[0][0])


class Walker:
    """A model behind `rank`, which knows what each node stands for, and refuses rows that were not verified."""

    def __init__(self, models: list[int], groups: list[BeamState]) -> None:
        self.models, self.groups = models, groups
        self.num_calls = 0

    def rank(self, stands: list[BeamFrontier]) -> list[list[tuple[int, float]]]:
        self.num_calls += 1
        return [self._row(stand) for stand in stands]

    def _row(self, stand: BeamFrontier) -> list[tuple[int, float]]:
        group = self.groups[stand.group]
        tree, path, node = group.trees[stand.source], [], stand.node
        while node != ROOT:
            path.append(tree.tokens[node])
            node = tree.parents[node]
        assert stand.output == (*group.search.outputs[stand.source], *reversed(path))
        return ranked(self.models[stand.group], stand.output, group.rules)


def any_trees(rng: random.Random, search: Search, coming: list[Search], skill: float) -> tuple[Tree, ...]:
    """Per beam, some of what the search will ask for and some that it will not."""
    trees = []
    for output in search.outputs:
        nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node: siblings differ, as drafted ones do
        places = {output: ROOT}
        for state in coming[:4]:
            for later in state.outputs:
                before = places.get(later[:-1])
                if before is not None and rng.random() < skill:
                    places[later] = nodes.setdefault((before, later[-1]), len(nodes))
            if rng.random() < 0.5:
                token, parent = rng.randrange(V), rng.randrange(-1, len(nodes))
                nodes.setdefault((parent, token), len(nodes))
        tokens, parents = tuple(token for _, token in nodes), tuple(parent for parent, _ in nodes)
        trees.append(Tree(tokens, parents))
    return tuple(trees)


@settings(max_examples=80, deadline=None)
@given(
    models=st.lists(st.tuples(st.integers(0, 10**6), rules_of), min_size=1, max_size=3),
    skill=st.sampled_from([0.0, 0.7, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_search_over_any_trees_equals_plain_steps(models: list[tuple[int, BeamRules]], skill: float, seed: int) -> None:
    rng = random.Random(seed)
    states = [plain(model, rules) for model, rules in models]
    at = [0] * len(models)
    while going := [i for i in range(len(models)) if at[i] < len(states[i]) - 1]:
        groups = [
            BeamState(
                states[i][at[i]],
                models[i][1],
                any_trees(rng, states[i][at[i]], states[i][at[i] + 1 :], skill),
            )
            for i in going
        ]
        walker = Walker([models[i][0] for i in going], groups)
        walks = traverse_beams(groups, walker.rank)
        for i, group, walk in zip(going, groups, walks, strict=True):
            at[i] += walk.num_levels
            assert walk.search == states[i][at[i]]
            check_walk(group, walk)
            if skill == 1.0 and not walk.search.is_over:
                assert walk.num_levels >= min(5, len(states[i]) - 1 - (at[i] - walk.num_levels))
        assert walker.num_calls == max(walk.num_levels for walk in walks)


def check_walk(group: BeamState, walk) -> None:
    """Forks are paths in their sources' trees, of the tokens that were chosen."""
    assert walk.num_levels >= 1 and len(walk.used) == len(group.trees)
    assert len(walk.forks) == (0 if walk.search.is_over else len(walk.search.outputs))
    for fork, output in zip(walk.forks, walk.search.outputs, strict=False):
        tree = group.trees[fork.source]
        path = tuple(tree.tokens[node] for node in fork.nodes)
        assert output[:-1] == (*group.search.outputs[fork.source], *path)
        assert all(tree.parents[node] == before for node, before in zip(fork.nodes, (ROOT, *fork.nodes), strict=False))
        assert len(fork.nodes) == walk.num_levels - 1 and set(fork.nodes) <= set(walk.used[fork.source])
        assert fork.ahead == tree.children.get(fork.last_node, {}).get(output[-1])
    assert walk.search.is_over or any(fork.ahead is None for fork in walk.forks), "else another level was complete"
    assert len(walk.chosen) == walk.num_levels - walk.search.is_over
    if not walk.search.is_over:
        known = len(group.search.outputs[0])
        assert walk.chosen[-1] == tuple(
            (fork.source, output[known:]) for fork, output in zip(walk.forks, walk.search.outputs, strict=True)
        )
    for tree, used in zip(group.trees, walk.used, strict=True):
        assert list(used) == sorted(set(used)) and all(tree.depths[node] < walk.num_levels + 1 for node in used)


def test_traversal_stops_at_a_level_with_a_missing_node() -> None:
    """Two beams; both first continuations of the first beam are drafted, a second level of one of them only."""
    rules = BeamRules(2, max_tokens=9)
    rows = {
        (1,): [(5, -0.1), (6, -0.2), (7, -9.0), (8, -9.0)],
        (2,): [(5, -7.0), (6, -8.0), (7, -9.0), (8, -9.0)],
        (1, 5): [(3, -0.1), (4, -5.0), (7, -9.0), (8, -9.0)],
        (1, 6): [(3, -0.1), (4, -5.0), (7, -9.0), (8, -9.0)],
    }
    search = Search(((1,), (2,)), (-1.0, -1.1))

    def walk(first: Tree):
        (made,) = traverse_beams(
            [BeamState(search, rules, (first, EMPTY))], lambda stands: [rows[s.output] for s in stands]
        )
        return made

    made = walk(Tree((5, 6, 3), (-1, -1, 0)))
    assert made.search.outputs == ((1, 5, 3), (1, 6, 3)) and made.num_levels == 2
    assert made.forks == (Fork(0, (0,), ahead=2), Fork(0, (1,))) and made.used == ((0, 1), ())
    assert made.chosen == (((0, (5,)), (0, (6,))), ((0, (5, 3)), (0, (6, 3))))
    made = walk(Tree((5, 3), (-1, 0)))
    assert made.search.outputs == ((1, 5), (1, 6)) and made.num_levels == 1
    assert made.forks == (Fork(0, ahead=0), Fork(0)) and made.used == ((), ())
    assert made.chosen == (((0, (5,)), (0, (6,))),)


def test_equal_scores_go_to_the_better_beam_and_the_lower_token() -> None:
    rules = BeamRules(2, max_tokens=9)
    after, parents = advance(
        Search(((1,), (2,)), (-1.0, -1.0)), rules, [[(4, -0.5), (9, -0.5)], [(3, -0.5), (4, -0.5)]]
    )
    assert after.outputs == ((1, 4), (1, 9)) and parents == (0, 0)
    kept = (Hypothesis((8,), -0.5, FinishReason.STOP),)
    rules = BeamRules(1, max_tokens=1, ends=frozenset({4}))
    after, _ = advance(Search(finished=kept), rules, [[(4, -0.5)]])
    assert after.finished == kept, "the earlier of two equal ones stays"
