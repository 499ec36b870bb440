"""Which place a head guesses for, proven with models and heads made by hand: every draft is right, or none is."""

from pathlib import Path

import pytest
import torch

from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile
from tests.support.counting_model import HEADS, HIDDEN, VOCAB, save_counting_model, save_heads, shifted
from tests.support.tiny_engine import Run, decode, request, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
CHAIN = {"mode": "static", "tree": [[0], [0, 0], [0, 0, 0]]}


def run(folder: Path, count: int = 21, **params: object) -> Run:
    rank = EngineRank(tiny_config(folder, speculation=CHAIN), folder)
    each = [
        request("a", [9, 4], seed=3, max_tokens=count, ignore_eos=True, **params),
        request("b", [30], seed=-4, max_tokens=count, ignore_eos=True, **params),
    ]
    return decode(rank.engine, each)


ALL_RIGHT = (0, *((1, 2, 3, 0) * 5))


def save_sequential(folder: Path, by: int) -> None:
    """A cell whose state says, wherever it starts, "`by` on from the token that I was just told"."""
    about = HeadsDescription(
        form="sequential",
        width=2 * HIDDEN,
        num_heads=HEADS,
        offsets=(1, 2, 3),
        dtype="float32",
        base=BaseModelFacts(name="counting", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB),
    )
    # silu(20 x) is 20 x for x = 1 and nearly nothing for x = 0: the state forgets itself and takes the token's place.
    up = torch.cat([20 * torch.eye(HIDDEN), torch.zeros(HIDDEN, HIDDEN)], 1)
    told = torch.cat([torch.zeros(HIDDEN, HIDDEN), 20 * torch.eye(HIDDEN)], 1)
    place = torch.zeros(HIDDEN, HIDDEN)
    for v in range(VOCAB):
        place[(v + by) % VOCAB, v] = 1.0
    tensors = {
        "cell.up.weight": torch.cat([up, told]),
        "cell.up.bias": torch.zeros(2 * HIDDEN),
        "cell.down.weight": torch.cat([-torch.eye(HIDDEN), place], 1) / 20,
    }
    HeadsFile(about, tensors).save(folder)


@pytest.mark.parametrize(
    ("speculation", "cells"),
    [(CHAIN, ((0, True), (1, False), (-1, False))), ({"mode": "auto", "max_nodes": 3}, ((0, True),))],
)
def test_sequential_heads_draft_on_from_their_own_guesses(speculation: dict, cells: tuple, tmp_path: Path) -> None:
    """The model counts; output row v answers to state v - 1, so a cell that repeats what it was told is right."""
    save_counting_model(tmp_path, 9 * shifted(1))
    for by, right in cells:
        save_sequential(tmp_path / "heads", by)
        rank = EngineRank(tiny_config(tmp_path, speculation=speculation), tmp_path)
        outputs = decode(rank.engine, [request("a", [9, 4], max_tokens=21, temperature=0.0, ignore_eos=True)]).outputs
        assert outputs["a"].token_ids == tuple((5 + i) % VOCAB for i in range(21))
        accepted = sum(head > 0 for head in outputs["a"].heads)
        assert accepted >= 12 if right else accepted == 0
        assert not right or max(outputs["a"].heads) == HEADS


@pytest.mark.parametrize(("form", "distance"), [("hidden", 1), ("hidden+embedding", 0)])
def test_a_head_guesses_its_distance_from_the_token_just_emitted(form: str, distance: int, tmp_path: Path) -> None:
    """The hidden state is of the token before the one just emitted, so head k answers to it by k + 1."""
    save_counting_model(tmp_path, shifted(1))
    for error, expected in ((0, ALL_RIGHT), (-1, (0,) * 21), (1, (0,) * 21)):
        save_heads(tmp_path / "heads", [shifted(k + distance + error) for k in (1, 2, 3)], form)
        outputs = run(tmp_path, temperature=0.0).outputs
        assert outputs["a"].token_ids == tuple((5 + i) % VOCAB for i in range(21))
        assert outputs["b"].token_ids == tuple((31 + i) % VOCAB for i in range(21))
        assert [output.heads for output in outputs.values()] == [expected] * 2


@pytest.mark.parametrize("params", [{"temperature": 1.0}, {"temperature": 0.3}, {"temperature": 1.0, "logprobs": 0}])
@pytest.mark.parametrize("sequential", [False, True])
def test_heads_draft_with_the_noise_of_the_position_they_guess(params: dict, sequential: bool, tmp_path: Path) -> None:
    """Flat logits everywhere: the noise alone decides, for the model and for the heads."""
    flat = torch.zeros(VOCAB, HIDDEN)
    save_counting_model(tmp_path, flat)
    if sequential:
        save_sequential(tmp_path / "heads", 0)
    else:
        save_heads(tmp_path / "heads", [flat.clone() for _ in range(HEADS)])
    outputs = run(tmp_path, **params).outputs
    assert [output.heads for output in outputs.values()] == [ALL_RIGHT] * 2
    assert len(set(outputs["a"].token_ids)) > 8 and outputs["a"].token_ids != outputs["b"].token_ids


def test_short_draft_vocabulary_drafts_only_the_tokens_it_knows(tmp_path: Path) -> None:
    """Ids are translated: what the heads know is accepted, what they do not know is not."""
    save_counting_model(tmp_path, shifted(1))
    known = torch.tensor([v for v in range(VOCAB) if v % 5])
    save_heads(tmp_path / "heads", [shifted(k + 1)[known] for k in (1, 2, 3)], draft_vocab=known)
    output = run(tmp_path, temperature=0.0).outputs["a"]
    assert output.token_ids == tuple((5 + i) % VOCAB for i in range(21))
    drafted = {token for token, head in zip(output.token_ids, output.heads, strict=True) if head}
    assert drafted and not any(token % 5 == 0 for token in drafted)


def test_greedy_and_sampled_requests_are_both_drafted_in_one_batch(tmp_path: Path) -> None:
    save_counting_model(tmp_path, 3 * shifted(1))
    save_heads(tmp_path / "heads", [3 * shifted(k + 1) for k in (1, 2, 3)])
    rank = EngineRank(tiny_config(tmp_path, speculation=CHAIN), tmp_path)
    fields = {"max_tokens": 21, "ignore_eos": True}
    each = [request("cold", [4], temperature=0.0, **fields), request("warm", [4], seed=8, temperature=1.5, **fields)]
    outputs = decode(rank.engine, each).outputs
    assert outputs["cold"].heads == ALL_RIGHT
    assert sum(head > 0 for head in outputs["warm"].heads) >= 10  # the base's noise and the heads' are one
