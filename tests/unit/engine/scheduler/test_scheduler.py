"""The scheduler under a fake model: outputs, order, blocks, rows, preemption; and a state machine that tries it all."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.runner.plan import Op
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.limits import Limits
from medusa_dist.errors import RequestError
from medusa_dist.medusa.trees.tree import Tree
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from tests.support.fake_model import EOS, VOCAB, FakeEngine, continuation

LEAST, MOST = (-99, 0), (99, 0)  # turns
STATIC = ((0,), (1,), (2,), (0, 0), (1, 0), (1, 2), (1, 0, 0), (1, 2, 1), (1, 2, 1, 0))


def limits(**fields: int) -> Limits:
    keys = {"max_running": 4, "max_batched_tokens": 64, "max_model_len": 120, "vocab_size": VOCAB} | fields
    return Limits(**keys, eos_ids=(EOS,))


def speculation(nodes: int | None = 7) -> TreePolicy:
    """nodes: at most so many, 0 = off, None = a static tree."""
    if nodes is None:
        return TreePolicy(SpeculationConfig(mode="static", tree=STATIC))
    return TreePolicy(SpeculationConfig(mode="auto", max_nodes=nodes))


def engine(num_blocks: int = 40, nodes: int | None = 7, skill: float = 0.7, **fields: int) -> FakeEngine:
    return FakeEngine(limits(**fields), num_blocks, speculation(nodes), skill)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    rng = random.Random(seed * 1000 + length)
    return tuple(rng.randrange(VOCAB) for _ in range(length))


def check(made: FakeEngine, requests: list[Request]) -> None:
    for request in requests:
        output = made.outputs[request.request_id]
        expected = continuation(request, made.scheduler.limits.max_model_len)
        assert (output.token_ids, output.finish_reason) == expected
        assert output.stats.num_accepted == sum(head > 0 for head in output.heads)
        assert len(output.heads) == len(output.token_ids)
    assert made.scheduler.pool.num_free == made.scheduler.pool.num_usable and not made.scheduler.running


@pytest.mark.parametrize("nodes", [0, 1, 7, 30, None])
@pytest.mark.parametrize("budget", [16, 64])
def test_scheduled_outputs_equal_plain_decoding(nodes: int | None, budget: int) -> None:
    made = engine(nodes=nodes, max_batched_tokens=budget)
    requests = [made.submit(f"r{i}", prompt(3 + 9 * i, i), max_tokens=5 + 9 * i) for i in range(7)]
    made.run()
    check(made, requests)
    totals = [made.outputs[r.request_id].stats for r in requests]
    drafted, accepted = sum(s.num_drafted for s in totals), sum(s.num_accepted for s in totals)
    assert (0 < accepted < drafted) if nodes != 0 else (accepted == drafted == 0)


@pytest.mark.parametrize("nodes", [7, None])
def test_small_pool_preempts_and_loses_no_token(nodes: int | None) -> None:
    made = engine(num_blocks=8, nodes=nodes)
    requests = [made.submit(f"r{i}", prompt(20, i), max_tokens=60, ignore_eos=True) for i in range(6)]
    made.run()
    check(made, requests)
    assert made.scheduler.num_preemptions > 0


def test_long_prompt_is_chunked_after_decoding_sequences() -> None:
    made = engine(max_batched_tokens=16)
    first = made.submit("first", prompt(4), max_tokens=30, ignore_eos=True)
    made.step()
    second = made.submit("second", prompt(70, 1), max_tokens=3)
    chunks = []
    while "second" not in made.outputs:
        made.step()
        plan = made.plans[-1]
        assert plan.num_new_tokens[0] == 1, "decoding comes first"
        chunks.append(int(plan.num_new_tokens[1]))
        assert int((plan.num_new_tokens + plan.num_draft_tokens).sum()) <= 16
    assert sum(chunks) == 70 and max(chunks) == 15
    made.run()
    check(made, [first, second])


def test_waiting_requests_are_admitted_in_order_of_arrival() -> None:
    made = engine(num_blocks=9, max_running=3)
    made.submit("long", prompt(90), max_tokens=8)  # 6 or 7 of 8 blocks
    made.submit("wide", prompt(50, 1), max_tokens=3)  # does not fit beside it
    made.submit("small", prompt(3, 2), max_tokens=3)  # would, and must not overtake
    made.step()
    assert [s.request.request_id for s in made.scheduler.running] == ["long"]
    made.run()
    assert list(made.outputs) == ["long", "wide", "small"]


def test_trees_shrink_before_any_sequence_is_preempted() -> None:
    made = engine(num_blocks=3, nodes=30, max_running=2, max_model_len=32)
    requests = [made.submit(f"r{i}", prompt(14, i), max_tokens=3, ignore_eos=True) for i in range(2)]
    made.step()
    made.step()
    # Both have 15 known tokens in a block each and none is free: one node fits behind the root, not 30.
    assert made.plans[-1].num_draft_tokens.tolist() == [1, 1]
    made.run()
    check(made, requests)
    assert made.scheduler.num_preemptions == 0


def test_rejected_drafts_free_their_blocks_in_the_next_step() -> None:
    made = engine(num_blocks=5, nodes=30, skill=0.0)
    made.submit("first", prompt(14), max_tokens=20, ignore_eos=True)
    made.step()
    made.step()
    assert len(made.scheduler.running[0].block_table) == 3  # its tree reaches into two more
    made.submit("second", prompt(30, 1), max_tokens=10, ignore_eos=True)
    made.step()
    assert [s.request.request_id for s in made.scheduler.running] == ["first", "second"]
    assert made.scheduler.num_preemptions == 0


def test_tree_rows_fit_max_batched_tokens() -> None:
    made = engine(nodes=30, max_batched_tokens=16)
    for i in range(4):
        made.submit(f"r{i}", prompt(3, i), max_tokens=20, ignore_eos=True)
    made.run()
    totals = [int((plan.num_new_tokens + plan.num_draft_tokens).sum()) for plan in made.plans]
    assert max(totals) == 16


def test_youngest_sequence_is_preempted_and_first_in_the_queue() -> None:
    made = engine(num_blocks=4, nodes=0, max_running=3, max_model_len=48)
    requests = [made.submit(f"r{i}", prompt(15, i), max_tokens=20, ignore_eos=True) for i in range(3)]
    made.step()
    assert len(made.scheduler.running) == 3
    while not made.scheduler.num_preemptions:
        made.step()
    assert [s.request.request_id for s in made.scheduler.running] == ["r0"]
    assert [s.request.request_id for s in made.scheduler.waiting] == ["r1", "r2"]
    made.run()
    check(made, requests)


def test_lower_priorities_go_first_and_are_preempted_last() -> None:
    made = engine(max_running=1, nodes=0)
    for name, priority in (("a", 1), ("b", 0), ("c", -3), ("d", 0), ("e", 1)):
        made.submit(name, prompt(5), max_tokens=2, ignore_eos=True, priority=priority)
    made.run()
    assert list(made.outputs) == ["c", "b", "d", "a", "e"]
    made = engine(num_blocks=5, nodes=0, max_running=3, max_model_len=48)
    requests = [
        made.submit(name, prompt(15, i), max_tokens=20, ignore_eos=True, priority=priority)
        for i, (name, priority) in enumerate((("a", 2), ("b", 0), ("c", 1)))
    ]
    made.step()
    assert len(made.scheduler.running) == 3
    gone: list[str] = []
    while made.scheduler.has_work:
        made.step()
        gone += [s.request.request_id for s in made.scheduler.waiting if s.request.request_id not in gone]
    assert gone == ["a", "c"] and next(iter(made.outputs)) == "b"
    check(made, requests)


def test_no_sequence_is_preempted_for_a_waiting_one() -> None:
    made = engine(max_running=1)
    made.submit("low", prompt(5), max_tokens=9, ignore_eos=True, priority=9)
    made.step()
    made.submit("high", prompt(5), max_tokens=2, ignore_eos=True, priority=-9)
    made.run()
    assert list(made.outputs) == ["low", "high"] and made.scheduler.num_preemptions == 0


def test_prefix_blocks_are_shared_only_within_one_cache_salt() -> None:
    made = engine()
    cached = []
    salts: list[str | None] = [None, "x", "y", "x", None, "y"]
    requests = []
    for i, salt in enumerate(salts):
        requests.append(made.submit(f"r{i}", prompt(40), max_tokens=3, cache_salt=salt))
        made.run()
        cached.append(made.outputs[f"r{i}"].num_cached_tokens)
    assert cached == [0, 0, 0, 32, 32, 32]
    check(made, requests)


def test_resubmitted_request_continues_after_its_known_output() -> None:
    made = engine()
    request = made.submit("x", prompt(9), max_tokens=25, ignore_eos=True)
    expected, _ = continuation(request, 120)
    for known in range(len(expected)):
        made = engine()
        made.submit("x", prompt(9), expected[:known], max_tokens=25, ignore_eos=True)
        made.run()
        assert made.outputs["x"].token_ids == expected[known:]


def rows_of_prompts(made: FakeEngine) -> int:
    """Known tokens that were computed, roots not counted."""
    return sum(
        int(chain) - int(want) for p in made.plans for chain, want in zip(p.num_new_tokens, p.needs_logits, strict=True)
    )


def test_cached_prefix_is_not_computed_again() -> None:
    made = engine(max_batched_tokens=64)
    shared = prompt(40)
    first = made.submit("first", shared, max_tokens=4)
    made.run()
    before = rows_of_prompts(made)
    assert before == 39 and made.outputs["first"].num_cached_tokens == 0
    again = made.submit("again", shared, max_tokens=9)
    longer = made.submit("longer", (*shared, *prompt(5)), max_tokens=4)
    other = made.submit("other", ((shared[0] + 1) % VOCAB, *shared[1:]), max_tokens=4)
    made.run()
    check(made, [first, again, longer, other])
    # 40 tokens are two full blocks and 8 more; another first token makes another prefix.
    assert rows_of_prompts(made) - before == (39 - 32) + (44 - 32) + 39
    cached = [made.outputs[name].num_cached_tokens for name in ("again", "longer", "other")]
    assert cached == [32, 32, 0]


def test_fully_cached_prompt_still_computes_its_last_token() -> None:
    made = engine(max_batched_tokens=64)
    requests = [made.submit("a", prompt(32), max_tokens=3)]
    made.run()
    requests.append(made.submit("b", prompt(32), max_tokens=3))
    made.run()
    check(made, requests)
    assert made.outputs["b"].num_cached_tokens == 16


def test_output_of_a_request_is_a_cached_prefix_of_the_next() -> None:
    """A conversation: the next prompt is the last one, its answer, and more."""
    made = engine(nodes=0, max_batched_tokens=64, max_model_len=200)
    first = made.submit("first", prompt(20), max_tokens=30)
    made.run()
    longer = (*first.prompt_ids, *made.outputs["first"].token_ids, *prompt(7))
    second = made.submit("second", longer, max_tokens=10)
    made.run()
    check(made, [first, second])
    # Of 20 + 30 tokens the last was emitted, and its KV never computed: 49, or three full blocks.
    assert made.outputs["second"].num_cached_tokens == 48


def test_sequences_finish_at_context_length_and_at_stop_tokens() -> None:
    made = engine(max_model_len=40, skill=1.0)
    full = made.submit("full", prompt(30), max_tokens=None, ignore_eos=True)
    stop = made.submit("stop", prompt(5, 3), max_tokens=30, stop_token_ids=tuple(range(5)))
    made.run()
    check(made, [full, stop])
    assert made.outputs["full"].finish_reason is FinishReason.LENGTH and len(made.outputs["full"].token_ids) == 10
    ended = made.outputs["stop"]
    assert ended.finish_reason is FinishReason.STOP and ended.token_ids[-1] in range(5)
    assert not set(ended.token_ids[:-1]) & set(range(5)), "tokens behind the stop token came out"


def test_aborted_requests_free_their_blocks_and_end_without_output() -> None:
    made = engine(max_running=2)
    for i in range(4):
        made.submit(f"r{i}", prompt(8, i), max_tokens=30, ignore_eos=True)
    made.step()
    for name in ("r0", "r3", "r0", "nobody"):
        made.scheduler.abort(name)
        made.scheduler.check_integrity()
    made.run()
    assert {name for name, output in made.outputs.items() if output.finish_reason} == {"r1", "r2"}
    assert made.scheduler.pool.num_free == made.scheduler.pool.num_usable


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"prompt": ()}, "the prompt is empty", "prompt"),
        ({"prompt": (1, VOCAB)}, "token id 11 is outside", "prompt"),
        ({"prompt": (-1,)}, "token id -1 is outside", "prompt"),
        ({"prompt": (1,) * 120}, "context length is 120 tokens", "prompt"),
        ({"prompt": (1,) * 100, "max_tokens": 21}, "context length is 120 tokens", "max_tokens"),
        ({"max_tokens": 110}, "need 8 KV blocks, the cache has 6", "max_tokens"),
        ({"max_tokens": None}, "need 8 KV blocks", "max_tokens"),
        ({"logit_bias": ((VOCAB, 1.0),)}, "logit_bias names token 11", "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias names token -1", "logit_bias"),
        ({"stop_token_ids": (VOCAB,), "min_tokens": 2}, "stop_token_ids names token 11", "stop_token_ids"),
        ({"stop_token_ids": (3, -1)}, "stop_token_ids names token -1", "stop_token_ids"),
    ],
)
def test_request_that_can_never_be_served_is_refused_by_field(fields: dict, message: str, param: str) -> None:
    made = engine(num_blocks=7)
    given = {"prompt": (1, 2, 3), "max_tokens": 5} | fields
    with pytest.raises(RequestError, match=message) as caught:
        made.submit("x", given.pop("prompt"), **given)
    assert caught.value.param == param and not made.scheduler.has_work


def test_plan_holds_admissions_tokens_and_new_blocks_of_a_step() -> None:
    made = engine(nodes=0)
    made.submit("a", (5, 6, 7), max_tokens=9, temperature=0.5, ignore_eos=True)
    made.submit("b", (8,), max_tokens=9, top_k=2, ignore_eos=True)
    made.step()
    plan = made.plans[0]
    assert (plan.op, plan.generation, plan.step) == (Op.STEP, 3, 0)
    assert plan.admitted_indices.tolist() == plan.batch_indices.tolist() == [0, 1]
    assert plan.admitted_temperatures.view(np.float64).tolist() == [0.5, 1.0]
    assert plan.admitted_full_logits.tolist() == [0, 1] and plan.admitted_seeds.tolist() == [1, 1]
    assert plan.token_ids.tolist() == [5, 6, 7, 8] and plan.num_new_tokens.tolist() == [3, 1]
    assert plan.num_new_blocks.tolist() == [1, 1] and plan.num_kept_blocks.tolist() == [0, 0]
    made.step()
    later = made.plans[1]
    assert later.admitted_indices.size == later.blocks.size == later.num_new_blocks.sum() == 0
    assert later.num_computed_tokens.tolist() == [3, 1] and later.num_new_tokens.tolist() == [1, 1]


class Life(RuleBasedStateMachine):
    """Requests come, go and are cut off, in any order, over a pool that is too small for all of them."""

    names: Bundle[str] = Bundle("names")

    @initialize(
        seed=st.integers(0, 1000),
        num_blocks=st.integers(9, 16),
        budget=st.sampled_from([16, 24, 64]),
        nodes=st.sampled_from([0, 3, 15, None]),
        skill=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def begin(self, seed: int, num_blocks: int, budget: int, nodes: int | None, skill: float) -> None:
        self.limits = limits(max_running=5, max_batched_tokens=budget, max_model_len=90)
        self.engine = FakeEngine(self.limits, num_blocks, speculation(nodes), skill, seed)
        self.requests: dict[str, Request] = {}
        self.num_added = 0

    @rule(
        target=names,
        length=st.integers(1, 60),
        max_tokens=st.integers(1, 30),
        stops=st.booleans(),
        seed=st.integers(0, 99),
        priority=st.integers(-1, 1),
    )
    def add(self, length: int, max_tokens: int, stops: bool, seed: int, priority: int) -> str:
        name = f"r{self.num_added}"
        self.num_added += 1
        # Prompts share beginnings, so that blocks are found again in the prefix cache.
        fields: dict = {"stop_token_ids": (1, 2)} if stops else {"ignore_eos": True}
        fields |= {"priority": priority, "cache_salt": "salt" if seed % 3 == 0 else None}
        self.requests[name] = self.engine.submit(name, prompt(60, seed % 4)[:length], max_tokens=max_tokens, **fields)
        return name

    @rule(name=consumes(names))
    def abort(self, name: str) -> None:
        self.engine.scheduler.abort(name)
        before = self.engine.outputs.get(name)
        if before is None or before.finish_reason is None:
            del self.requests[name]

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.scheduler.has_work:
                ran = {s.group.number for s in self.engine.scheduler.running}
                self.engine.step()
                plan = self.engine.plans[-1]
                self.nobody_overtook(ran, set(plan.admitted_indices.tolist()))
                assert (
                    plan.batch_indices.size
                    and int((plan.num_new_tokens + plan.num_draft_tokens).sum()) <= self.limits.max_batched_tokens
                )

    def nobody_overtook(self, ran: set[int], admitted_slots: set[int]) -> None:
        """Whoever was let in came before all who wait; whoever was put out comes behind all who stayed."""
        scheduler = self.engine.scheduler
        waiting = [s.priority_key for s in scheduler.waiting]
        assert waiting == sorted(waiting)
        admitted = [s.priority_key for s in scheduler.running if s.batch_index in admitted_slots]
        assert max(admitted, default=LEAST) < min(waiting, default=MOST)
        put_out = [s.priority_key for s in scheduler.waiting if s.number in ran]
        stayed = [s.priority_key for s in scheduler.running if s.group.number in ran]
        assert max(stayed, default=LEAST) < min(put_out, default=MOST)

    @invariant()
    def in_order(self) -> None:
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.run()
            check(self.engine, list(self.requests.values()))


Life.TestCase.settings = settings(
    max_examples=250, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRandomLives = Life.TestCase


def test_tree_is_no_deeper_than_the_tokens_that_are_left() -> None:
    made = engine(nodes=30, skill=1.0)
    made.submit("x", prompt(5), max_tokens=3, ignore_eos=True)
    made.step()
    made.step()
    tree = Tree(tuple(made.plans[-1].token_ids[1:].tolist()), tuple(made.plans[-1].parents.tolist()))
    assert max(tree.depths) == 1  # two tokens are left: one drafted, one of the model
