"""Beams under a fake model whose rows are looked up in a simulated KV pool: forks, sharing, preemption, aborts."""

import random
from functools import lru_cache

import numpy as np
import pytest
import torch

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.beam.group import beam_group, shared_blocks, with_forks
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.errors import RequestError
from medusa_dist.medusa.beam.search import BeamRules, Search, advance
from medusa_dist.medusa.trees.calibration import BEAMS, GREEDY, SAMPLED
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.fake_model import EOS, VOCAB, FakeEngine, FakeWorker, continuation, truth

MAX_LEN = 120


@lru_cache(maxsize=2**14)
def logits(tokens: tuple[int, ...]) -> list[float]:
    rng = random.Random(hash(tokens))
    return [rng.gauss(0, 2) - 2 * (token == EOS) for token in range(VOCAB)]


def ranked(tokens: tuple[int, ...], count: int) -> list[tuple[int, float]]:
    row = torch.tensor(logits(tokens))
    log_p = (row - torch.logsumexp(row.double(), 0).float()).tolist()
    return sorted(enumerate(log_p), key=lambda pair: (-pair[1], pair[0]))[:count]


def expected(request: Request) -> tuple:
    """What plain steps find."""
    params = request.params
    ends = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else (EOS,))
    most = min(params.max_tokens, MAX_LEN - len(request.prompt_ids))
    rules = BeamRules(params.beam_width, most, ends, params.length_penalty, params.early_stopping)
    search = Search()
    while not search.is_over:
        rows = [ranked((*request.prompt_ids, *output), rules.num_candidates) for output in search.outputs]
        search, _ = advance(search, rules, rows)
    return search.finished


class SeeingWorker(FakeWorker):
    """Says what each row saw, instead of what follows it."""

    answer = staticmethod(lambda tokens: tokens)


class BeamEngine(FakeEngine):
    """The fake engine with the real token selector."""

    def __init__(self, num_blocks: int, nodes: int = 12, seed: int = 0, **fields: int) -> None:
        keys = {"max_running": 6, "max_batched_tokens": 64, "max_model_len": MAX_LEN, "vocab_size": VOCAB} | fields
        speculation = TreePolicy(SpeculationConfig(mode="auto", max_nodes=nodes))
        super().__init__(Limits(**keys, eos_ids=(EOS,)), num_blocks, speculation, skill=0.7, seed=seed)
        self.worker = SeeingWorker(keys["max_running"], -(-(MAX_LEN + 64) // 16))
        self.token_selector = TokenSelector(VOCAB, (EOS,), torch.device("cpu"))
        self.most_shared = 0

    def step(self) -> list[Output]:
        plan = self.scheduler.schedule(len(self.plans))
        self.plans.append(plan)
        sequences = self.scheduler.sequences_with_logits(plan)
        seen = self.worker.execute(plan)
        of_row = [s for s in sequences for _ in range(1 + len(s.tree))]
        whole = {
            i: torch.tensor(logits(seen[i]))
            for i, s in enumerate(of_row)
            if s.group.size > 1 or s.request.params.beam_width
        }
        choices = np.array([truth(tokens) for tokens in seen], dtype=np.int64)
        verdicts = self.token_selector.select(plan, Scores(choices, whole, torch.zeros(len(seen), 1)), sequences)
        outputs = self.scheduler.emit(plan, verdicts)
        self.scheduler.check_integrity()
        owned = [block for s in self.scheduler.running for block in s.block_table]
        self.most_shared = max(self.most_shared, len(owned) - len(set(owned)))
        for sequence in (v.sequence for v in verdicts):
            if sequence.finish_reason is None:
                is_single = sequence.request.params.beam_width is None
                sequence.candidates = {"heads": self.draft(sequence) if is_single else self.guess(sequence)}
        for output in outputs:
            assert output.finish_reason is not None or not output.hypotheses
            before = self.outputs.get(output.request_id)
            self.outputs[output.request_id] = output if before is None else before.merged(output)
        return outputs

    def guess(self, sequence: Sequence) -> Candidates:
        """The likeliest continuations of this beam, and guesses behind them."""
        first = [token for token, _ in ranked(tuple(sequence.tokens), 4)]
        second = [token for token, _ in ranked((*sequence.tokens, first[0]), 4)]
        third = self.rng.sample(range(VOCAB), 4)
        chances = np.tile(np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32), (3, 1))
        return Candidates(np.array([first, second, third]), chances)


def fields(rng: random.Random) -> dict:
    return {
        "beam_width": rng.randrange(1, 4),
        "max_tokens": rng.randrange(1, 25),
        "length_penalty": rng.choice([-1.0, 0.0, 1.0, 2.0]),
        "early_stopping": rng.choice([True, False, "never"]),
        "ignore_eos": rng.random() < 0.5,
    }


def prompt(rng: random.Random) -> tuple[int, ...]:
    start = (3, 1, 4, 1, 5, 9, 2, 6) * 4  # prompts with shared beginnings
    return start[: rng.choice([0, 8, 16, 17, 32])] + tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20)))


@pytest.mark.parametrize("nodes", [0, 12])
@pytest.mark.parametrize("seed", range(4))
def test_beam_results_survive_random_submits_aborts_and_small_pools(seed: int, nodes: int) -> None:
    """Submits and aborts at any time, priorities, cramped caches: each row sees what it should, no block is lost."""
    rng = random.Random(seed)
    made = BeamEngine(rng.choice([16, 20, 40]), nodes, seed, max_batched_tokens=rng.choice([16, 64]))
    requests: dict[str, Request] = {}
    for step in range(80):
        if len(requests) < 9 and rng.random() < 0.2:
            name, about = f"r{step}", {"priority": rng.randrange(3)}
            params = fields(rng) if rng.random() < 0.7 else {"max_tokens": rng.randrange(1, 40)}
            requests[name] = made.submit(name, prompt(rng), **params, **about)
        if requests and rng.random() < 0.02:
            gone = rng.choice(list(requests))
            made.scheduler.abort(gone)
            made.scheduler.check_integrity()
            if gone not in made.outputs or made.outputs[gone].finish_reason is None:
                made.outputs.pop(gone, None)
                del requests[gone]
        if made.scheduler.has_work:
            made.step()
    made.run()
    assert made.outputs.keys() == requests.keys() and len(requests) > 4
    for name, request in requests.items():
        output = made.outputs[name]
        if request.params.beam_width is None:
            assert (output.token_ids, output.finish_reason) == continuation(request, MAX_LEN)
            continue
        wanted = expected(request)
        assert [h.token_ids for h in output.hypotheses] == [h.token_ids for h in wanted]
        assert [h.score for h in output.hypotheses] == pytest.approx([h.score for h in wanted], abs=1e-5)
        assert (output.token_ids, output.finish_reason) == (wanted[0].token_ids, wanted[0].finish_reason)
        assert len(output.heads) == len(output.token_ids)
    pool = made.scheduler.pool
    assert pool.num_free == pool.num_usable and not made.scheduler.running


def test_beams_share_blocks_use_drafts_and_are_preempted() -> None:
    """Forks share blocks, drafts are used, and caches were cramped."""
    made = BeamEngine(14)
    for i in range(4):
        made.submit(f"r{i}", prompt(random.Random(i)) + (0,) * 20, beam_width=3, max_tokens=30, ignore_eos=True)
    made.run()
    assert made.most_shared >= 4 and made.scheduler.num_preemptions > 0
    assert sum(output.stats.num_accepted for output in made.outputs.values()) > 20
    assert any(plan.copy_sources.size for plan in made.plans)
    assert all(int((plan.batch_indices == slot).sum()) <= 1 for plan in made.plans for slot in range(6))


def test_preempted_search_restarts_and_keeps_its_place_in_the_queue() -> None:
    made = BeamEngine(9, nodes=0)
    first = made.submit("first", (1,) * 40, max_tokens=60, ignore_eos=True)
    search = made.submit("search", (2,) * 10, beam_width=3, max_tokens=20, ignore_eos=True)
    while not made.scheduler.num_preemptions:
        made.step()
    last = made.submit("last", (3,) * 30, max_tokens=4)
    # It may have been admitted again at once, and stands at its first token at most; nobody passes it.
    everyone = [s.group for s in made.scheduler.running if s is s.group.root] + list(made.scheduler.waiting)
    assert [s.request.request_id for s in sorted(everyone, key=lambda s: s.priority_key)] == ["first", "search", "last"]
    assert all(s.root.num_output_tokens <= 1 for s in everyone if s.request.params.beam_width)
    made.run()
    assert [h.token_ids for h in made.outputs["search"].hypotheses] == [h.token_ids for h in expected(search)]
    for request in (first, last):
        assert made.outputs[request.request_id].token_ids == continuation(request, MAX_LEN)[0]


def test_search_waits_until_all_its_beams_fit_max_running() -> None:
    made = BeamEngine(40, max_running=4)
    for i in range(2):
        made.submit(f"s{i}", (i, 5, 6), max_tokens=12, ignore_eos=True)
    made.submit("beams", (7, 8), beam_width=3, max_tokens=3)
    made.submit("late", (9,), max_tokens=3)
    made.step()
    assert [s.request.request_id for s in made.scheduler.running] == ["s0", "s1"], "none overtakes"
    made.run()
    assert made.outputs.keys() == {"s0", "s1", "beams", "late"}


REFUSED = {
    "seats": ({"beam_width": 7}, "beam_width", "the service runs 6; lower it"),
    "vocabulary": ({"beam_width": 5, "stop_token_ids": (1, 2)}, "beam_width", "ranks 20 continuations"),
    "blocks": ({"beam_width": 3, "max_tokens": 100}, "beam_width", "may need 21 KV blocks, the cache has 19"),
    "context": ({"beam_width": 2, "max_tokens": 119}, "max_tokens", "context length is 120"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_search_that_could_never_run_is_refused_by_field(case: str) -> None:
    params, param, text = REFUSED[case]
    made = BeamEngine(20)
    with pytest.raises(RequestError, match=text) as caught:
        made.submit("x", (1, 2, 3), **params)
    assert caught.value.param == param and not made.scheduler.has_work


def test_the_largest_search_that_fits_runs_alone_without_preemption() -> None:
    made = BeamEngine(1 + 2 + 3 * 3, nodes=12)
    request = made.submit("x", (4,) * 32, beam_width=3, max_tokens=46, ignore_eos=True)
    made.run()
    assert made.scheduler.num_preemptions == 0
    assert [h.token_ids for h in made.outputs["x"].hypotheses] == [h.token_ids for h in expected(request)]


def test_beam_group_takes_its_rules_from_the_request() -> None:
    params = SamplingParams(beam_width=2, max_tokens=None, stop_token_ids=(7,), length_penalty=0.5, early_stopping=True)
    request = Request(request_id="x", prompt_ids=(1, 2, 3), params=params, seed=0)
    limits = Limits(max_running=4, max_batched_tokens=64, max_model_len=50, vocab_size=VOCAB, eos_ids=(EOS,))
    group = beam_group(request, limits, 100)
    assert group.rules == BeamRules(2, 47, frozenset({7, EOS}), 0.5, True)
    assert group.rules.num_candidates == 6 and group.sequences == group.running == [group.root]
    assert group.root.tokens == [1, 2, 3]
    assert [one.group for one in group.admit()] == [group, group] and group.running == [group.root]


def test_copies_into_a_block_that_a_fork_takes_are_dropped() -> None:
    params = SamplingParams(beam_width=2)
    one = SingleSequence(Request(request_id="x", prompt_ids=(1,) * 18, params=params, seed=0)).root
    one.block_table, one.num_computed_tokens, one.fork_slots = [3, 5], 18, [40, 47]
    moves = [(100, 80), (101, 81), (102, 83), (7, 8)]  # slot 80 is block 5's first
    assert with_forks(moves, [one]) == [(102, 83), (7, 8), (40, 80), (47, 81)]
    assert one.fork_slots == []


def test_shared_blocks_are_full_blocks_of_the_same_search() -> None:
    params = SamplingParams(beam_width=2)
    request = Request(request_id="x", prompt_ids=(1,) * 40, params=params, seed=0)
    other = SingleSequence(request).root
    limits = Limits(max_running=4, max_batched_tokens=64, max_model_len=50, vocab_size=VOCAB, eos_ids=())
    first, second = beam_group(request, limits, 100).admit()
    second.tokens = list(first.tokens)
    first.block_table, second.block_table, other.block_table = [1, 2, 3], [1, 2, 4], [6, 7, 8]
    for sequence in (first, second, other):
        sequence.num_computed_tokens = 35
    assert shared_blocks([first, second, other]) == {1, 2}


def test_sequence_has_the_sampling_mode_and_kind_of_its_group() -> None:
    greedy, sampled = (
        SingleSequence(Request(request_id="r", prompt_ids=(1,), params=SamplingParams(temperature=t), seed=0)).root
        for t in (0.0, 0.5)
    )
    params = SamplingParams(beam_width=2)
    limits = Limits(max_running=4, max_batched_tokens=16, max_model_len=64, vocab_size=50, eos_ids=())
    beam = beam_group(Request(request_id="b", prompt_ids=(1,), params=params, seed=0), limits, 64).root
    assert [(s.is_beam, s.sampling_mode) for s in (greedy, sampled, beam)] == [
        (False, GREEDY),
        (False, SAMPLED),
        (True, BEAMS),
    ]
