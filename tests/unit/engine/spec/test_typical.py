"""Typical acceptance in the engine: its rule, how much more it accepts, and that its neighbours stay exact."""

import math

import pytest
import torch

from medusa_dist.engine.spec.typical import typical_bounds, weights_of
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.errors import RequestError
from medusa_dist.ops.sampling import History, adjust
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_engine import EOS, Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> EngineRank:
    folder = tmp_path_factory.mktemp("llama")
    save_model("llama", folder)
    return EngineRank(tiny_config(folder), folder)


def requests(count: int = 4, **params: object) -> list[Request]:
    given = {"max_tokens": 40, "ignore_eos": True, "acceptance": "typical"} | params
    return [request(f"r{i}", range(i % 20, i % 20 + 9), seed=i, **given) for i in range(count)]


def chances(run: Run, one: Request) -> list[tuple[float, float]]:
    """(p of each output token, the bound) by the rule as it is written, from the rows the engine saw."""
    params, found = one.params, []
    output = run.outputs[one.request_id].token_ids
    for i, token in enumerate(output):
        row = run.logits[one.request_id, len(one.prompt_ids) + i]
        history = History(torch.tensor(one.prompt_ids), torch.tensor(output[:i], dtype=torch.int64))
        p = torch.softmax(adjust(row, params, history, (EOS,)).double(), dim=-1)
        entropy = -float((p * p.clamp_min(1e-300).log()).sum())
        found.append((float(p[token]), min(params.typical_epsilon, params.typical_delta * math.exp(-entropy))))
    return found


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.6, "typical_epsilon": 0.03}, {"top_k": 6, "repetition_penalty": 1.3, "logprobs": 2}],
    ids=["plain", "cooler", "filters"],
)
def test_every_accepted_draft_exceeds_its_typical_bound(rank: EngineRank, params: dict) -> None:
    each = requests(**params)
    run = decode(engine_over(rank, Setting(nodes=15)), each)
    num_drafted = 0
    for one in each:
        output = run.outputs[one.request_id]
        assert len(output.token_ids) == 40 and len(output.logprobs) == (40 if "logprobs" in params else 0)
        for head, (p, bound) in zip(output.heads, chances(run, one), strict=True):
            assert p > bound - 1e-6 or not head
            num_drafted += head > 0
        assert output.stats.num_accepted == sum(head > 0 for head in output.heads)
    assert num_drafted > 20


def test_typical_acceptance_accepts_more_and_changes_the_output(rank: EngineRank) -> None:
    lossy = decode(engine_over(rank, Setting(nodes=15)), requests(24))
    exact = decode(engine_over(rank, Setting(nodes=15)), requests(24, acceptance="exact"))
    assert lossy.accepted > 1.1 * exact.accepted
    assert any(lossy.outputs[name].token_ids != output.token_ids for name, output in exact.outputs.items())


def test_typical_acceptance_without_drafts_equals_exact(rank: EngineRank) -> None:
    off = decode(engine_over(rank, Setting()), requests())
    exact = decode(engine_over(rank, Setting()), requests(acceptance="exact"))
    assert {n: o.token_ids for n, o in off.outputs.items()} == {n: o.token_ids for n, o in exact.outputs.items()}


def test_exact_requests_beside_typical_ones_stay_exact(rank: EngineRank) -> None:
    exact = requests(acceptance="exact")
    alone = decode(engine_over(rank, Setting()), exact)
    others = [request(f"x{i}", range(i, i + 5), seed=i, max_tokens=30, acceptance="typical") for i in range(3)]
    mixed = [one for pair in zip(exact, [*others, exact[3]], strict=True) for one in pair][:-1]
    run = decode(engine_over(rank, Setting(nodes=15)), mixed)
    for one in exact:
        assert run.outputs[one.request_id].token_ids == alone.outputs[one.request_id].token_ids
    assert sum(run.outputs[f"x{i}"].stats.num_accepted for i in range(3)) > 0


def test_typical_acceptance_does_not_change_the_calibration(rank: EngineRank) -> None:
    engine = engine_over(rank, Setting(nodes=15))
    before = [list(band) for band in engine.policy.calibrations["heads"].intercepts]
    decode(engine, requests())
    assert before == engine.policy.calibrations["heads"].intercepts
    decode(engine, requests(acceptance="exact"))
    assert before != engine.policy.calibrations["heads"].intercepts


def test_weights_are_log_softmax_and_entropy() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), -math.inf], [1.0, 1.0, 1.0]])
    sure, flat = weights_of(list(scores), [[1, 2], [0]])
    assert sure.log_p[1] == pytest.approx(math.log(0.75)) and sure.log_p[2] == -math.inf
    assert sure.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert flat.log_p == {0: pytest.approx(-math.log(3.0))} and flat.entropy == pytest.approx(math.log(3.0))


def test_typical_bounds_come_from_the_params() -> None:
    assert typical_bounds(SamplingParams()) is None
    assert typical_bounds(SamplingParams(acceptance="typical", typical_epsilon=0.2)) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"acceptance": "lossy"}, "acceptance"),
        ({"acceptance": "typical", "temperature": 0.0}, "acceptance"),
        ({"acceptance": "typical", "speculation": False}, "acceptance"),
        ({"acceptance": "typical", "beam_width": 2}, "acceptance"),
        ({"typical_epsilon": 0.1}, "typical_epsilon"),
        ({"typical_delta": 0.1}, "typical_delta"),
        ({"acceptance": "typical", "typical_delta": 0.0}, "typical_delta"),
        ({"acceptance": "typical", "typical_epsilon": 1.5}, "typical_epsilon"),
    ],
)
def test_typical_fields_out_of_place_or_range_are_refused_by_name(params: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert caught.value.param == param
