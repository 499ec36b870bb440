"""What comes out with speculation on is a sample of the model's own distribution: chi-square, seed by seed.

A table says what follows each token, so the counts of pairs have known expectations. The p-values of many seeds must
be uniform (Kolmogorov-Smirnov), which also sees a fit that is too good, as from noise that is used twice.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.medusa.trees.tree import ROOT
from medusa_dist.ops import noise
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.request import Request, choice_seed
from medusa_dist.sampling_params import SamplingParams
from tests.support.markov_model import Alone, MarkovHeads, finished, markov_engine, random_table

pytestmark = pytest.mark.usefixtures("one_thread", "many_rows_at_once")
V, NUM_SEEDS, LENGTH = 7, 20, 200
LOGITS = random_table(V, 0.6)
BIAS = ((3, 1.0), (6, -1.0))
# The 1 % point of Kolmogorov and Smirnov's distance for 20 values.
CRITICAL = 0.352


@pytest.fixture
def many_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of a small vocabulary is made faster so; it is the same (tests/unit/ops/test_noise.py)."""
    monkeypatch.setattr(noise, "_ROWS_AT_ONCE", 4096)


def by_definition(params: SamplingParams) -> np.ndarray:
    """Chances [V, V] after each token, filter by filter, in float64."""
    table = LOGITS.double().numpy().copy()
    for token, bias in params.logit_bias:
        table[:, token] += bias
    chances = np.exp(table / params.temperature)
    chances /= chances.sum(1, keepdims=True)
    for row in chances:
        if params.min_p:
            row[row < params.min_p * row.max()] = 0.0
        order = sorted(range(V), key=lambda token: (-row[token], token))
        if params.top_k:
            row[order[params.top_k :]] = 0.0
        row[:] = row / row.sum()
        before = 0.0
        for token in order:
            before, row[token] = before + row[token], row[token] if before < params.top_p else 0.0
        row[:] = row / row.sum()
    return chances


def requests(params: SamplingParams, num_tokens: int) -> Iterator[Request]:
    """Of all seeds in turn: `num_tokens` tokens each, over requests of LENGTH tokens."""
    for i in range(num_tokens // LENGTH):
        for seed in range(NUM_SEEDS):
            yield Request(
                request_id=f"{seed}/{i}", prompt_ids=(i % V,), params=params, seed=choice_seed(1000 + seed, i)
            )


def p_values(engine: Engine, params: SamplingParams, num_tokens: int) -> list[float]:
    """One per seed: of the counts of pairs [V, V], given how often each first token came."""
    counts = np.zeros((NUM_SEEDS, V, V))
    drafted = accepted = 0
    for output in finished(engine, requests(params, num_tokens)):
        seed, i = map(int, output.request_id.split("/"))
        path = (i % V, *output.token_ids)
        assert len(output.token_ids) == LENGTH
        np.add.at(counts[seed], (path[:-1], path[1:]), 1)
        drafted, accepted = drafted + output.stats.num_drafted, accepted + output.stats.num_accepted
    assert 0 < accepted < drafted and accepted > 0.2 * counts.sum()  # much of it went through trees
    assert counts.sum() == NUM_SEEDS * num_tokens
    chances = by_definition(params)
    possible = chances > 0
    assert not counts[:, ~possible].any(), "a token came that filters exclude"
    freedom = int(possible.sum()) - V
    values = []
    for seen in counts:
        expected = (seen.sum(1, keepdims=True) * chances)[possible]
        assert expected.min() > 1
        statistic = float(((seen[possible] - expected) ** 2 / expected).sum())
        values.append(float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2))))
    return values


def distance_to_uniform(values: list[float]) -> float:
    ordered = sorted(values)
    return max(max(p - i / len(ordered), (i + 1) / len(ordered) - p) for i, p in enumerate(ordered))


def engine_of(tree: str, parallel: TPGroup) -> Engine:
    """Trees of the heads' best guesses, or a fixed one; what the heads believe is wrong by a factor of 2 or so."""
    paths = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 0))
    static = SpeculationConfig(mode="static", tree=paths)
    config = static if tree == "static" else SpeculationConfig(mode="auto", max_nodes=int(tree))
    return markov_engine(LOGITS, config, heads=MarkovHeads(LOGITS, 3, 0.7), parallel=parallel)


PARAMS: dict[str, dict] = {
    "T=1": {},
    "T=0.7": {"temperature": 0.7},
    "top_k": {"top_k": 4, "temperature": 1.3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.3},
    "logit_bias": {"logit_bias": BIAS},
}
WHO = {"by nodes": TPGroup(), "by shards": Alone(0, 2)}  # where the choice is made: on rank 0, or by each shard
CASES = [("T=1", "7", "by nodes", 50_000), ("T=0.7", "static", "by shards", 50_000)]
CASES += [(name, "7", "by nodes", 10_000) for name in PARAMS if name not in ("T=1", "T=0.7")]


def check(params: str, tree: str, who: str, num_tokens: int) -> None:
    made = SamplingParams(**PARAMS[params], max_tokens=LENGTH)
    values = p_values(engine_of(tree, WHO[who]), made, num_tokens)
    print(f"{params}, tree {tree}, {who}: distance {distance_to_uniform(values):.3f}, least p {min(values):.4f}")
    assert distance_to_uniform(values) < CRITICAL


@pytest.mark.parametrize(("params", "tree", "who"), [("T=1", "7", "by nodes"), ("T=0.7", "static", "by shards")])
def test_tokens_with_speculation_follow_the_models_distribution(params: str, tree: str, who: str) -> None:
    check(params, tree, who, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("params", "tree", "who", "num_tokens"), CASES)
def test_many_tokens_of_each_seed_follow_the_models_distribution(
    params: str, tree: str, who: str, num_tokens: int
) -> None:
    check(params, tree, who, num_tokens)


def test_lossy_acceptance_rule_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts taken for being likely enough ("typical acceptance"): the same counts say so at once."""
    honest = TokenSelector._choose
    chances = torch.softmax(LOGITS, dim=-1)

    def lossy(self, scores, rows, places):
        tokens = honest(self, scores, rows, places)
        for i, (sequence, path) in enumerate(places):
            last = path[-1] if path else sequence.tokens[-1]
            children = sequence.tree.children.get(ROOT, {}) if not path else {}
            likely = [token for token in children if chances[last, token] > 0.1]
            tokens[i] = likely[0] if likely else tokens[i]
        return tokens

    monkeypatch.setattr(TokenSelector, "_choose", lossy)
    values = p_values(engine_of("7", TPGroup()), SamplingParams(max_tokens=LENGTH), 600)
    assert distance_to_uniform(values) > 2 * CRITICAL


def test_distance_to_uniform_has_textbook_values() -> None:
    assert distance_to_uniform([0.5]) == 0.5
    assert distance_to_uniform([(i + 0.5) / 20 for i in range(20)]) == pytest.approx(1 / 40)
    assert math.isclose(distance_to_uniform([0.9, 0.95]), 0.9)
