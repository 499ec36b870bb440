"""What is drafted for beams: each list against one path at a time, with and without memory, and which are made."""

import math
import random

import pytest
import torch

from medusa_dist.engine.beam.beam_drafter import BeamDrafter
from medusa_dist.engine.beam.group import BeamGroup
from medusa_dist.engine.beam.result import Known
from medusa_dist.medusa.beam.beam_tree import num_followed, rank_guesses
from medusa_dist.medusa.beam.search import BeamRules, Ranked, Search
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.heads.sequential import SequentialHeads, build_heads
from medusa_dist.medusa.trees.candidates import NOWHERE, Candidates
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_heads import HIDDEN, VOCAB, random_heads

pytestmark = pytest.mark.usefixtures("one_thread")
EOS, RANKS, HEADS, DRAFTED = 2, 6, 3, 19
FORMS = {"hidden": {}, "hidden+embedding": {}, "sequential": {"width": 17, "embedding_scale": 0.7}}
Heads = MedusaHeads | SequentialHeads


def made_drafter(form: str) -> tuple[BeamDrafter, Heads, torch.Tensor, torch.Tensor]:
    """Drafter, heads, embeddings [V, H], and the ids of the tokens that the heads know."""
    generator = torch.Generator().manual_seed(3)
    file = random_heads(1, 0.7, form=form, draft_vocab_size=DRAFTED, num_heads=HEADS, **FORMS[form])
    heads = build_heads(file, torch.randn(DRAFTED, HIDDEN, generator=generator), torch.float32, torch.device("cpu"))
    embeddings = torch.randn(VOCAB, HIDDEN, generator=generator)
    assert heads.token_ids is not None
    return BeamDrafter(heads, embeddings, heads.token_ids, RANKS), heads, embeddings, heads.token_ids


def group_of(width: int, seed: int, reach: int) -> tuple[BeamGroup, list[torch.Tensor]]:
    """Beams under way, and the row before the last token of each."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    request = Request(request_id="x", prompt_ids=(4, 6), params=SamplingParams(beam_width=width), seed=0)
    group = BeamGroup(request, BeamRules(width, 60, frozenset({EOS})))
    group.admit()
    group.beams, group.idle, group.reach = group.sequences, [], reach
    for beam in group.beams:
        beam.tokens = [4, 6, rng.randrange(VOCAB), rng.randrange(VOCAB)]
    scores = sorted((rng.uniform(-3, 0) for _ in range(width)), reverse=True)
    group.search = Search(tuple(tuple(beam.tokens[2:]) for beam in group.beams), tuple(scores))
    return group, list(torch.randn(width, HIDDEN, generator=generator))


def known(seed: int) -> Known:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tokens = rng.sample([token for token in range(VOCAB) if token != EOS], 5)
    return Known([(token, -0.5 - rank) for rank, token in enumerate(tokens)], torch.randn(HIDDEN, generator=generator))


def naive(heads: Heads, embeddings: torch.Tensor, ids: torch.Tensor, row: torch.Tensor, tail: list[int]) -> Ranked:
    """What the heads guess behind a known row and these tokens."""
    if isinstance(heads, SequentialHeads):
        state = heads.start(row[None])
        for token in tail:
            state, logits = heads.step(state, embeddings[token][None])
    else:
        logits = heads(row[None], embeddings[tail[0]][None])[:, len(tail) - 1]
    best, columns = torch.log_softmax(logits[0], -1).topk(RANKS)
    return list(zip(ids[columns].tolist(), best.tolist(), strict=True))


def lists_of(candidates: Candidates) -> dict[tuple[int, ...], int]:
    """Path of tokens -> the list that stands behind it."""
    found, going = {}, [((), 0)]
    while going:
        path, place = going.pop()
        found[path] = place
        for rank, token in enumerate(candidates.tokens[place].tolist()):
            if candidates.confidences[place, rank] > 0 and candidates.list_after(place, rank) != NOWHERE:
                going.append(((*path, token), candidates.list_after(place, rank)))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("remembered", [False, True])
def test_every_list_is_what_the_heads_guess_after_its_own_path(form: str, remembered: bool) -> None:
    drafter, heads, embeddings, ids = made_drafter(form)
    groups, rows = zip(*(group_of(width, width, reach=5) for width in (3, 1, 2)), strict=True)
    if remembered:
        first = known(7)
        groups[0].memory = {(0, ()): first, (0, (first.ranked[1][0],)): known(8)}
        groups[2].memory = {(1, ()): known(9)}
    made = drafter.draft(groups, rows)
    deepest = 0
    for group, of_group in zip(groups, rows, strict=True):
        for b, (beam, row) in enumerate(zip(group.beams, of_group, strict=True)):
            candidates = made[beam]
            places = lists_of(candidates)
            assert sorted(places.values()) == list(range(len(candidates.tokens))), "no list is lost or shared"
            for path, place in places.items():
                at, anchor = max(
                    ((len(p), p) for owner, p in group.memory if owner == b and path[: len(p)] == p), default=(-1, ())
                )
                if at == len(path):
                    ranked = group.memory[b, path].ranked
                else:
                    start = row if at < 0 else group.memory[b, anchor].hidden
                    tail = [beam.tokens[-1], *path] if at < 0 else list(path[at:])
                    assert len(tail) <= HEADS
                    ranked = naive(heads, embeddings, ids, start, tail)
                count = len(ranked)
                assert candidates.tokens[place, :count].tolist() == [token for token, _ in ranked]
                chances = [math.exp(log_p) for _, log_p in ranked]
                assert candidates.confidences[place, :count].tolist() == pytest.approx(chances, abs=1e-5)
                assert not candidates.confidences[place, count:].any()
                deepest = max(deepest, len(path) + 1)
    assert deepest > HEADS if remembered else deepest == HEADS, "from what is known, the heads see as far again"


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_best_guesses_of_the_group_are_drafted_further(reach: int) -> None:
    drafter, *_ = made_drafter("sequential")
    group, rows = group_of(3, 5, reach)
    group.memory = {(1, ()): known(4)}
    drafted = drafter.draft([group], [rows])
    made = [drafted.get(beam) for beam in group.beams]
    levels = rank_guesses(made, group.search.scores, group.rules.ends, 9)
    assert len(levels) == reach
    for depth, level in enumerate(levels[:-1], start=1):
        behind = {(b, path) for b, one in enumerate(made) for path in lists_of(one) if len(path) == depth}
        assert behind == set(level[: num_followed(depth, 3)])
