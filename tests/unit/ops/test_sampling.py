"""Choices from logits, against a plain Python reading of the rules."""

import math
import random

import pytest
import torch

from medusa_dist.grammar import Grammar
from medusa_dist.ops.noise import NoiseColumns, gumbel
from medusa_dist.ops.sampling import NEVER, History, adjust, lowest_argmax, perturb, token_logprobs, top_tokens
from medusa_dist.sampling_params import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")
V = 31
EOS = (2, 29)
PROMPT, OUTPUT = [3, 5, 5, 11], [7, 7, 7, 3, 19]


def history(prompt: list[int], output: list[int]) -> History:
    return History(torch.tensor(prompt, dtype=torch.int64), torch.tensor(output, dtype=torch.int64))


def slow_adjust(logits: list[float], p: SamplingParams, prompt: list[int], output: list[int]) -> list[float]:
    """vLLM's order, one token at a time: allowed tokens, bias, bans, penalties, temperature, min_p, top_k, top_p."""
    row = list(logits)
    if p.allowed_token_ids is not None:
        row = [value if token in p.allowed_token_ids else NEVER for token, value in enumerate(row)]
    for token, bias in p.logit_bias:
        row[token] += bias
    for word in p.bad_words:
        if [*output, word[-1]][-len(word) :] == list(word):
            row[word[-1]] = NEVER
    if len(output) < p.min_tokens:
        for token in (*p.stop_token_ids, *(() if p.ignore_eos else EOS)):
            row[token] = NEVER
    for token in set(prompt) | set(output):
        row[token] = row[token] / p.repetition_penalty if row[token] > 0 else row[token] * p.repetition_penalty
    for token in set(output):
        row[token] -= p.frequency_penalty * output.count(token) + p.presence_penalty
    if p.temperature == 0:
        return row
    row = [value / p.temperature for value in row]
    best = max(row)
    if p.min_p > 0:
        row = [value if math.exp(value - best) >= p.min_p else NEVER for value in row]
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    kept = order[: p.top_k] if p.top_k else order
    if p.top_p < 1:
        total = sum(math.exp(row[token] - best) for token in kept)
        mass, nucleus = 0.0, []
        for token in kept:
            if mass >= p.top_p:
                break
            nucleus.append(token)
            mass += math.exp(row[token] - best) / total
        kept = nucleus
    return [value if token in kept else NEVER for token, value in enumerate(row)]


def check(logits: list[float], params: SamplingParams, prompt: list[int] = PROMPT, output: list[int] = OUTPUT) -> None:
    given = torch.tensor(logits)
    got = adjust(given, params, history(prompt, output), EOS)
    expected = slow_adjust(given.tolist(), params, prompt, output)
    assert [value == NEVER for value in got.tolist()] == [value == NEVER for value in expected], params
    assert torch.allclose(got, torch.tensor(expected), rtol=1e-5, atol=1e-5), params
    assert given.tolist() == torch.tensor(logits).tolist(), "the caller's row was changed"


def random_params(rng: random.Random, **fixed: object) -> SamplingParams:
    choices: dict[str, list] = {
        "temperature": [0.0, 0.3, 1.0, 2.5],
        "top_p": [1.0, 0.05, 0.5, 0.95],
        "top_k": [0, 1, 3, 30, 31, 100],
        "min_p": [0.0, 0.02, 0.3, 1.0],
        "presence_penalty": [0.0, -1.5, 0.7],
        "frequency_penalty": [0.0, 0.9, -0.4],
        "repetition_penalty": [1.0, 1.3, 0.6],
        "logit_bias": [(), ((7, 5.0),), ((0, -100.0), (30, 2.5))],
        "allowed_token_ids": [None, None, (1, 2, 7, 9, 17, 18, 19, 28, 29, 30)],
        "bad_words": [(), ((8,), (7, 3, 19, 9), (4, 9)), ((3, 19, 1), (19, 2), (7, 7, 7, 3, 19, 6), (0,) * 7)],
        "min_tokens": [0, 5, 6],
        "stop_token_ids": [(), (7,), (0, 30)],
        "ignore_eos": [False, True],
    }
    return SamplingParams(**{name: rng.choice(values) for name, values in choices.items()} | fixed)


@pytest.mark.parametrize("seed", range(5))
def test_random_field_combinations_equal_the_plain_python_rules(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(80):
        logits = [rng.gauss(0, 3) for _ in range(V)]
        check(logits, random_params(rng), output=rng.choice([OUTPUT, []]))


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.7},
        {"min_tokens": 6},
        {"min_tokens": 6, "stop_token_ids": (4,), "ignore_eos": True},
        {"min_tokens": 5, "stop_token_ids": (4,)},
        {"min_tokens": 6, "ignore_eos": True},
        {"logit_bias": ((6, -100.0), (7, 3.0))},
        {"allowed_token_ids": (4,)},
        {"bad_words": ((6,), (19, 8), (3, 19, 9), (7, 19, 10))},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_each_sampling_field_alone_equals_the_plain_python_rules(params: dict, temperature: float) -> None:
    rng = random.Random(1)
    check([rng.gauss(0, 2) for _ in range(V)], SamplingParams(temperature=temperature, **params))


def test_sampling_fields_apply_in_vllms_order() -> None:
    """Each pair of steps gives another result the other way round."""
    base = torch.full((V,), -30.0)
    base[:4] = torch.tensor([4.0, 3.0, 2.0, 1.0])

    def kept(**fields: object) -> list[int]:
        row = adjust(base, SamplingParams(**fields), history([1], [0, 0]), ())
        return [token for token in range(V) if row[token] > NEVER]

    # A penalty sees logits before temperature, so a colder row does not soften it.
    assert adjust(base, SamplingParams(temperature=0.5, presence_penalty=1.0), history([1], [0]), ())[0] == 6.0
    # Repetition divides first, then frequency and presence subtract: 4 / 2 - (2 * 0.5 + 0.25).
    both = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    assert float(adjust(base, both, history([1], [0, 0]), ())[0]) == pytest.approx(0.75)
    # Bias comes before repetition: (4 - 6) * 2.
    assert adjust(base, SamplingParams(logit_bias=((0, -6.0),), repetition_penalty=2.0), history([], [0]), ())[0] == -4
    # min_p looks at the row after temperature: hot rows keep more.
    assert kept(min_p=0.2, temperature=1.0) == [0, 1] and kept(min_p=0.2, temperature=2.0) == [0, 1, 2, 3]
    # top_k renormalises before top_p: of [.64, .24, .09, .03] the first two make .88; of the best two, .73 and .27.
    assert kept(top_p=0.7) == [0, 1] and kept(top_k=2, top_p=0.7) == [0]
    # min_p comes before top_p: without 2 and 3 the best token alone has .73.
    assert kept(min_p=0.2, top_p=0.7) == [0]


def test_ties_at_a_boundary_go_to_the_lower_id() -> None:
    row = torch.zeros(V)
    row[20] = 1.0
    none = history([], [])
    for params, expected in (
        (SamplingParams(top_k=3), [0, 1, 20]),
        (SamplingParams(top_k=1), [20]),
        (SamplingParams(top_p=0.1), [0, 20]),
        (SamplingParams(min_p=1.0), [20]),
    ):
        got = adjust(row, params, none, ())
        assert [token for token in range(V) if got[token] > NEVER] == expected, params


def test_filters_are_skipped_when_greedy_and_never_empty_a_row() -> None:
    row = torch.linspace(-1, 1, V)
    greedy = adjust(row, SamplingParams(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9), history([], []), ())
    assert torch.equal(greedy, row)
    for params in (SamplingParams(top_p=1e-9), SamplingParams(min_p=1.0), SamplingParams(top_k=1)):
        assert int((adjust(row, params, history([], []), ()) > NEVER).sum()) == 1


def test_min_tokens_bans_end_tokens_until_reached() -> None:
    params = SamplingParams(min_tokens=2, max_tokens=9, stop_token_ids=(4,))
    for num, banned in ((0, True), (1, True), (2, False)):
        row = adjust(torch.zeros(V), params, history([1], [8] * num), EOS)
        assert [bool(row[token] == NEVER) for token in (2, 29, 4)] == [banned] * 3
        assert row[5] == 0.0


def test_lowest_argmax_takes_the_lowest_id_of_equal_maxima() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [NEVER, NEVER, -5.0], [2.0, 2.0, 2.0], [NEVER, NEVER, NEVER]])
    values, ids = lowest_argmax(scores)
    assert ids.tolist() == [1, 2, 0, 0] and values.tolist() == [3.0, -5.0, 2.0, NEVER]
    wide = torch.zeros(1, 50021)
    wide[0, [777, 40000]] = 1.0  # a vectorised argmax may find the later one
    assert lowest_argmax(wide)[1].tolist() == [777]


def test_argmax_of_a_row_with_nan_is_an_impossible_id() -> None:
    scores = torch.zeros(2, V)
    scores[1, 3] = float("nan")
    assert lowest_argmax(scores)[1].tolist() == [0, V]


def test_token_logprobs_are_log_softmax_with_the_top_tokens() -> None:
    logits = torch.zeros(V)
    logits[[4, 9, 30]] = torch.tensor([2.0, 5.0, 2.0])
    total = math.log(28 + 2 * math.exp(2) + math.exp(5))
    found = token_logprobs(logits, 4, 4)
    assert found.token_id == 4 and found.logprob == pytest.approx(2 - total, abs=1e-5)
    assert found.top_ids == (9, 4, 30, 0)  # ties go to the lower id
    assert found.top_logprobs == pytest.approx([5 - total, 2 - total, 2 - total, -total], abs=1e-5)
    only = token_logprobs(logits, 0, 0)
    assert only.top_ids == only.top_logprobs == () and only.logprob == pytest.approx(-total, abs=1e-5)


def chi_square_limit(freedom: int) -> float:
    """The 99.9 % point, by Wilson and Hilferty."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.09 * math.sqrt(part)) ** 3


@pytest.fixture(scope="module")
def noise(one_thread: None) -> torch.Tensor:
    """[positions, V] of one seed."""
    count = 20_000
    return gumbel(torch.full((count,), -77), torch.arange(count), NoiseColumns.of_range(0, V, torch.device("cpu")))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=1.5, top_k=7),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=1.2, repetition_penalty=1.5, frequency_penalty=0.5, logit_bias=((4, 2.0),)),
    ],
    ids=["temperature", "top_p", "top_k", "min_p", "penalties"],
)
def test_argmax_with_noise_is_an_exact_sample(params: SamplingParams, noise: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = 1.5 * torch.randn(V, generator=generator)
    row = adjust(logits, params, history(PROMPT, OUTPUT), EOS)
    count = noise.shape[0]
    seen = torch.bincount(lowest_argmax(row + noise)[1], minlength=V).double()
    expected = torch.softmax(row.double(), -1) * count
    assert (seen[expected == 0] == 0).all()
    big = expected >= 5
    rest_seen, rest = seen[~big].sum(), expected[~big].sum()
    statistic = float((((seen - expected) ** 2 / expected)[big]).sum()) + (
        float((rest_seen - rest) ** 2 / rest) if rest > 0 else 0.0
    )
    assert statistic < chi_square_limit(int(big.sum()) - 1 + (rest > 0))


def test_perturb_divides_by_temperature_then_adds_noise() -> None:
    logits, noise = torch.randn(3, V), torch.randn(3, V)
    temperatures = torch.tensor([0.5, 1.0, 2.0])
    got = perturb(logits, temperatures, noise)
    for row in range(3):
        whole = adjust(logits[row], SamplingParams(temperature=float(temperatures[row])), history([], []), ())
        assert torch.equal(got[row], whole + noise[row])  # both ways to a choice, bit for bit


@pytest.mark.parametrize("count", [0, 1, 3, 7, 9])
def test_top_tokens_equal_a_stable_sort_also_with_ties(count: int) -> None:
    rows = torch.randn(5, 7)
    rows[1] = 0.5  # all equal
    rows[2, [1, 4, 6]] = 9.0  # equal at the top
    rows[3] = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0, 0.0, -1.0])  # a tie across the boundary
    rows[4, 2:] = float("-inf")
    ordered, columns = torch.sort(rows, descending=True, stable=True)
    values, ids = top_tokens(rows, count)
    assert torch.equal(values, ordered[:, :count]) and torch.equal(ids, columns[:, :count])


def test_grammar_masks_first_and_bans_never_empty_what_it_allows() -> None:
    """Filters look at what it lets through; bias and bans that would leave nothing of that do not apply."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5))
    grammar = Grammar.regex("a")
    mask = torch.zeros(V, dtype=torch.bool)
    mask[[2, 7, 11]] = True
    h = history(PROMPT, [])
    for params in ({"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.999}, {"repetition_penalty": 1.4}):
        row = adjust(logits, SamplingParams(grammar=grammar, **params), h, EOS, mask)
        alone = adjust(logits[mask], SamplingParams(**(params | {"repetition_penalty": 1.0})), history([], []), ())
        assert (row[~mask] == NEVER).all() and not row.isnan().any()
        kept = torch.tensor([True, True, "repetition_penalty" not in params])  # 11 is in the prompt
        torch.testing.assert_close(row[mask][kept], alone[kept])
    row = adjust(logits, SamplingParams(grammar=grammar, top_k=2, min_p=0.01), h, EOS, mask)
    assert set(torch.isfinite(row).nonzero().flatten().tolist()) <= {2, 7, 11}
    end_only = torch.zeros(V, dtype=torch.bool)
    end_only[2] = True
    for fields in ({"min_tokens": 3}, {"logit_bias": ((2, NEVER),)}, {"stop_token_ids": (2,), "min_tokens": 9}):
        row = adjust(logits, SamplingParams(grammar=grammar, temperature=0.5, **fields), h, EOS, end_only)
        assert torch.isfinite(row).nonzero().flatten().tolist() == [2] and float(row[2]) == float(logits[2] / 0.5)
    for fields in ({"min_tokens": 3}, {"logit_bias": ((2, NEVER),)}, {"bad_words": ((2,),)}):
        row = adjust(logits, SamplingParams(allowed_token_ids=(2,), **fields), h, EOS)
        assert torch.isfinite(row).nonzero().flatten().tolist() == [2], "bans that leave nothing do not apply"
    every = SamplingParams(bad_words=tuple((token,) for token in range(V)))
    assert torch.isfinite(adjust(logits, every, h, EOS)).all()
    row = adjust(logits, SamplingParams(grammar=grammar, min_tokens=3), h, EOS, mask)
    assert torch.isfinite(row).nonzero().flatten().tolist() == [7, 11]  # here the ban leaves something
