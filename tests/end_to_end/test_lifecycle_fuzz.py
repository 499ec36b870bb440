"""The whole engine under any life: requests come, go, are cut off and continued over a pool too small for all of them.

A hypothesis state machine over a real (tiny) model. Whatever happens, each output is that of the request alone without
drafts, the cache holds what a fresh pass over the tokens would write, no block is lost. The same machine over a model
without tensors, in many more lives: tests/unit/engine/scheduler/test_scheduler.py.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from tests.support.fresh_pass import check_cached_blocks, check_sequences
from tests.support.tiny_engine import VOCAB, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
EVENTS = ("aborted", "preempted", "found in the cache", "continued", "all lost", "scattered", "moved", "accepted")
KINDS: list[dict] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"top_p": 0.9, "repetition_penalty": 1.3, "logprobs": 1},
    {"temperature": 1.0, "speculation": False},
]


class World:
    """Two copies of one model: one lives, with its own cache; the other says what each request gets alone."""

    def __init__(self, folder: Path) -> None:
        save_model("gemma2", folder)
        config = tiny_config(folder, max_running=5)
        self.rank, self._other = EngineRank(config, folder), EngineRank(config, folder)
        self._alone: dict[Request, Output] = {}
        self.seen: Counter[str] = Counter()  # over all lives

    def alone(self, one: Request) -> Output:
        nameless = dataclasses.replace(one, request_id="x")
        if nameless not in self._alone:
            self._alone[nameless] = decode(engine_over(self._other, Setting()), [nameless]).outputs["x"]
        return self._alone[nameless]


class Life(RuleBasedStateMachine):
    """One life. `world` is set by the test."""

    world: World
    names: Bundle[str] = Bundle("names")

    @initialize(
        num_blocks=st.integers(8, 12),
        budget=st.sampled_from([16, 64]),
        nodes=st.sampled_from([0, 3, 15, None]),
        skill=st.sampled_from([0.3, 0.9]),
        seed=st.integers(0, 99),
    )
    def begin(self, num_blocks: int, budget: int, nodes: int | None, skill: float, seed: int) -> None:
        self.setting = Setting(nodes, skill=skill if nodes != 0 else None, num_blocks=num_blocks)
        self.setting = dataclasses.replace(self.setting, max_batched_tokens=budget, max_running=5)
        self.requests: dict[str, Request] = {}
        self.outputs: dict[str, Output] = {}
        self.gone: set[str] = set()  # aborted: nothing is expected of them, but their text may stand in the cache
        self.truth: dict[str, tuple[int, ...]] = {}  # what the oracle knows
        self.tokens = [tuple(random.Random(2 * seed + i).choices(range(VOCAB), k=60)) for i in (0, 1)]
        self.num_added = seed * 100  # names, and with them random seeds, differ from life to life
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        """With a cache full of what others left there."""
        pool = self.world.rank.engine.ranks.worker.pool
        pool.rows.normal_(generator=torch.Generator().manual_seed(1))
        return engine_over(self.world.rank, self.setting, self.truth)

    @rule(
        target=names,
        length=st.integers(1, 60) | st.sampled_from([16, 32, 48]),  # whole blocks: a prompt may be known to its end
        whose=st.integers(0, 1),
        max_tokens=st.integers(1, 24),
        kind=st.sampled_from(KINDS),
        stops=st.booleans(),
        priority=st.integers(-1, 1),
    )
    def add(self, length: int, whose: int, max_tokens: int, kind: dict, stops: bool, priority: int) -> str:
        """Prompts are beginnings of two texts, so that their blocks are found again."""
        name = f"r{self.num_added}"
        fields = kind | {"max_tokens": max_tokens, "ignore_eos": True, "stop_token_ids": (1, 2, 3) if stops else ()}
        one = request(name, self.tokens[whose][:length], self.num_added, **fields)
        self.requests[name] = dataclasses.replace(one, priority=priority)
        self.num_added += 1
        self.truth[name] = self.world.alone(self.requests[name]).token_ids
        self.engine.submit(self.requests[name])
        return name

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.has_work:
                self.one_step()
        check_sequences(self.engine)
        check_cached_blocks(self.engine, self.texts())

    def one_step(self) -> None:
        scheduler, seen = self.engine.scheduler, self.world.seen
        before = scheduler.num_preemptions
        for output in self.engine.step():
            so_far = self.outputs.get(output.request_id)
            self.outputs[output.request_id] = output if so_far is None else so_far.merged(output)
            seen["accepted"] += output.stats.num_accepted
        scheduler.check_integrity()
        seen["preempted"] += scheduler.num_preemptions - before
        for sequence in scheduler.running:
            seen["moved"] += len(sequence.pending_copies)
            seen["found in the cache"] += sequence.num_cached_tokens
            seen["scattered"] += any(
                b - a != 1 for a, b in zip(sequence.block_table, sequence.block_table[1:], strict=False)
            )

    def texts(self) -> Iterator[tuple[int, ...]]:
        """All that may stand in the cache."""
        for name, one in self.requests.items():
            yield one.prompt_ids + self.truth[name]

    @rule(name=consumes(names))
    def abort(self, name: str) -> None:
        self.engine.abort(name)
        self.engine.scheduler.check_integrity()
        if not self.is_done(name):
            self.world.seen["aborted"] += 1
            self.gone.add(name)

    def is_done(self, name: str) -> bool:
        output = self.outputs.get(name)
        return output is not None and output.finish_reason is not None

    @rule(target=names, name=consumes(names))
    def continue_elsewhere(self, name: str):
        """Cut off and handed in again with what came out so far, as after a lost stream."""
        if self.is_done(name):
            return multiple()
        self.engine.abort(name)
        self.engine.submit(self.requests[name], self.known(name))
        self.world.seen["continued"] += bool(self.known(name))
        return name

    def known(self, name: str) -> tuple[int, ...]:
        return self.outputs[name].token_ids if name in self.outputs else ()

    @rule()
    def lose_all(self) -> None:
        """A restarted group: another engine, an empty cache, every open request handed in again."""
        self.engine = self.new_engine()
        for name in self.requests:
            if name not in self.gone and not self.is_done(name):
                self.engine.submit(self.requests[name], self.known(name))
                self.world.seen["all lost"] += bool(self.known(name))

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_work:
                break
            self.one_step()
        for name, one in self.requests.items():
            if name not in self.gone:
                output, alone = self.outputs[name], self.world.alone(one)
                assert (output.token_ids, output.finish_reason) == (alone.token_ids, alone.finish_reason)
                assert output.logprobs == alone.logprobs
        pool = self.engine.scheduler.pool
        assert pool.num_free == pool.num_usable


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> World:
    return World(tmp_path_factory.mktemp("gemma2"))


def live(world: World, num_lives: int) -> None:
    machine = type("LifeHere", (Life,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_lives,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_lifecycles_keep_outputs_kv_and_blocks_right(world: World) -> None:
    live(world, 12)


@pytest.mark.slow
def test_many_random_lifecycles_reach_every_event_and_stay_right(world: World) -> None:
    live(world, 300)
    print(dict(world.seen))
    assert all(world.seen[event] > 20 for event in EVENTS), world.seen
