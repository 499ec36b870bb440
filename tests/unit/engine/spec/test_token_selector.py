"""Selecting tokens: which row is used, with which path and noise, and what comes with the result."""

import numpy as np
import pytest
import torch

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.errors import EngineError
from medusa_dist.medusa.trees.tree import EMPTY, Tree
from medusa_dist.ops.noise import NoiseColumns, gumbel
from medusa_dist.ops.sampling import token_logprobs
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.plan_helpers import Piece, make_step

V, EOS = 31, (2,)
CPU = torch.device("cpu")
PROMPT = (4, 5, 6)


def sequence(tree: Tree = EMPTY, output: tuple[int, ...] = (7,), seed: int = 3, **params: object) -> Sequence:
    request = Request(request_id="x", prompt_ids=PROMPT, params=SamplingParams(**params), seed=seed)
    made = SingleSequence(request, output).root
    made.tree = tree
    return made


def plan_of(sequences: list[Sequence], others: int = 0) -> Plan:
    """Their rows, with `others` unwanted prompt chunks before them."""
    pieces = [Piece(0, 9, wanted=False)] * others + [Piece(3, 1, s.tree.parents) for s in sequences]
    return make_step(pieces)[0]


def judge(sequences: list[Sequence], choices: list[int], whole: dict[int, torch.Tensor] | None = None, others: int = 0):
    scores = Scores(np.array(choices, dtype=np.int64), whole or {}, torch.zeros(len(choices), 1))
    return TokenSelector(V, EOS, CPU).select(plan_of(sequences, others), scores, sequences)


TREE = Tree((8, 9, 10), (-1, -1, 1))  # 8, and 9 -> 10


def test_shard_choices_are_followed_through_each_tree() -> None:
    first, second = sequence(TREE), sequence(EMPTY)
    a, b = judge([first, second], [9, 0, 10, 11, 20], others=2)
    assert a.accepted.nodes == (1, 2) and a.accepted.tokens == (9, 10, 11) and a.sequence is first
    assert b.accepted.nodes == () and b.accepted.tokens == (20,)
    assert (a.last_row, b.last_row) == (3, 4)  # rows the heads read: the deepest accepted node, and a lone root
    assert a.logprobs == b.logprobs == ()


def test_penalties_at_a_node_count_its_own_path() -> None:
    """Flat logits and a strong presence penalty: what was chosen on the way cannot come again."""
    whole = {row: torch.zeros(V) for row in range(4)}
    tree = Tree((0, 1, 3), (-1, 0, 1))
    (verdict,) = judge([sequence(tree, output=(), temperature=0.0, presence_penalty=2.0)], [-1] * 4, whole)
    assert verdict.accepted.tokens == (0, 1, 2)
    (verdict,) = judge([sequence(tree, output=(0,), temperature=0.0, presence_penalty=2.0)], [-1] * 4, whole)
    assert verdict.accepted.tokens == (1,)


def test_min_tokens_counts_the_accepted_path() -> None:
    logits = torch.zeros(V)
    logits[2], logits[8] = 5.0, 1.0  # the end, and second best
    whole = {row: logits.clone() for row in range(3)}
    one = sequence(Tree((8, 8), (-1, 0)), output=(), temperature=0.0, min_tokens=2)
    (verdict,) = judge([one], [-1] * 3, whole)
    assert verdict.accepted.tokens == (8, 8, 2)  # banned at the first two places only


@pytest.mark.parametrize("params", [{"temperature": 0.7}, {"temperature": 1.0, "top_k": 3}])
def test_noise_at_a_node_is_that_of_its_position(params: dict) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(1))
    cut = torch.where(torch.arange(V)[:, None] == logits.topk(params.get("top_k", V)).indices, 0.0, float("-inf"))
    row = logits / params["temperature"] + cut.amax(1)
    columns = NoiseColumns.of_range(0, V, CPU)
    noise = gumbel(torch.full((3,), -11), torch.tensor([4, 5, 6]), columns)  # four tokens are known
    expected = [int((row + noise[i]).argmax()) for i in range(3)]
    one = sequence(Tree((expected[0], expected[1]), (-1, 0)), seed=-11, **params)
    (verdict,) = judge([one], [-1] * 3, {r: logits.clone() for r in range(3)})
    assert verdict.accepted.tokens == tuple(expected)


def test_logprobs_are_those_of_the_models_logits() -> None:
    rows = torch.randn(4, V)
    rows[0, 9] = rows[2, 10] = 30.0
    rows[3, 5] = 30.0
    one = sequence(TREE, temperature=0.0, logprobs=2, logit_bias=((12, -1.0),))
    (verdict,) = judge([one], [-1] * 4, dict(enumerate(rows)))
    assert verdict.accepted.tokens == (9, 10, 5)
    assert verdict.logprobs == tuple(token_logprobs(rows[r], t, 2) for r, t in ((0, 9), (2, 10), (3, 5)))


def test_sequences_with_and_without_full_logits_mix_in_one_batch() -> None:
    spike = torch.zeros(V)
    spike[13] = 50.0
    plain, whole = sequence(TREE), sequence(EMPTY, top_k=4)
    a, b = judge([plain, whole], [8, 21, 0, 0, -1], {4: spike})
    assert (a.accepted.tokens, b.accepted.tokens) == ((8, 21), (13,))


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}])
def test_nan_logits_are_an_engine_error_naming_the_request(params: dict) -> None:
    row = torch.full((V,), float("nan"))
    with pytest.raises(EngineError, match=r"request x: the model's logits are NaN"):
        judge([sequence(EMPTY, **params)], [-1], {0: row})
    with pytest.raises(EngineError, match="logits are NaN"):
        judge([sequence(EMPTY)], [V])
