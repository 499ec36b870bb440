"""The wire: what is packed comes out again, and what is not due is refused."""

import random
from dataclasses import fields

import numpy as np
import pytest

from medusa_dist.engine.runner.plan import HEADER_WORDS, Op, Plan, bits_of, packed_words
from medusa_dist.errors import GroupError

SECTIONS = [f.name for f in fields(Plan) if f.name not in ("op", "generation", "step", "graph_rows")]


def random_plan(seed: int, op: Op = Op.STEP) -> Plan:
    rng = random.Random(seed)
    arrays = {
        name: np.array([rng.randrange(-(2**63), 2**63) for _ in range(rng.choice([0, 1, 3, 40]))], dtype=np.int64)
        for name in SECTIONS
    }
    return Plan(op, generation=5, step=seed, graph_rows=4 * seed, **arrays)


@pytest.mark.parametrize("op", list(Op))
def test_unpacked_plan_equals_the_packed_one(op: Op) -> None:
    for seed in range(20):
        plan = random_plan(seed, op)
        words = plan.pack()
        assert words.dtype == np.int64 and packed_words(words) == words.size
        again = Plan.unpack(words, generation=5, step=seed)
        assert (again.op, again.generation, again.step, again.graph_rows) == (op, 5, seed, 4 * seed)
        assert all(np.array_equal(getattr(again, name), getattr(plan, name)) for name in SECTIONS)


def test_empty_plan_is_packed_as_its_header() -> None:
    words = Plan(Op.HEARTBEAT, 0, 0).pack()
    assert words.size == HEADER_WORDS + len(SECTIONS)
    assert all(getattr(Plan.unpack(words, 0, 0), name).size == 0 for name in SECTIONS)


@pytest.mark.parametrize(("generation", "step"), [(5, 8), (5, 6), (4, 7), (6, 7)])
def test_plan_of_another_step_or_generation_is_a_group_error(generation: int, step: int) -> None:
    with pytest.raises(GroupError, match=rf"rank 0 is at step 7 of generation 5, this rank expects step {step} of"):
        Plan.unpack(random_plan(7).pack(), generation, step)


@pytest.mark.parametrize("word", [0, 1])
def test_message_with_another_magic_or_version_is_a_group_error(word: int) -> None:
    words = random_plan(7).pack()
    words[word] += 1
    with pytest.raises(GroupError, match="expected a plan of version 3"):
        Plan.unpack(words, 5, 7)


def test_bits_of_a_float_give_the_same_float_back() -> None:
    for value in (0.0, 0.8, 1e-300, 100.0, -0.0):
        back = np.array([bits_of(value)], dtype=np.int64).view(np.float64)[0]
        assert back == value and np.signbit(back) == np.signbit(value)
