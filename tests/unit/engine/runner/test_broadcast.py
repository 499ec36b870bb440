"""Broadcast and obedience, over two threads; tests/end_to_end/test_equivalence.py does it over two processes."""

import queue
import threading

import numpy as np
import pytest
import torch

from medusa_dist.engine.runner import broadcast as ranks
from medusa_dist.engine.runner.broadcast import MESSAGE_WORDS, RankGroup
from medusa_dist.engine.runner.phase_timer import PhaseTimer
from medusa_dist.engine.runner.plan import Op, Plan
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.errors import GroupError
from medusa_dist.ops.arrays import Ints


class Recorder:
    """A worker that remembers what it was told."""

    def __init__(self, returns: Scores | None) -> None:
        self.plans: list[Plan] = []
        self.returns = returns

    def execute(self, plan: Plan, _clock: PhaseTimer | None = None) -> Scores | None:
        self.plans.append(plan)
        return self.returns


class Wired(RankGroup):
    """Broadcasts through a queue; says how long its messages were."""

    def __init__(self, worker: Recorder, wire: queue.Queue, sends: bool, generation: int = 2) -> None:
        super().__init__(worker, object(), generation)
        self.wire, self.sends = wire, sends
        self.sizes: list[int] = []

    def _broadcast(self, words: Ints) -> None:
        self.sizes.append(words.size)
        if self.sends:
            self.wire.put(words.copy())
        else:
            words[:] = self.wire.get(timeout=10)


SCORES = Scores(np.zeros(0, dtype=np.int64), {}, torch.empty(0))


def pair(generation: int = 2) -> tuple[Wired, Wired]:
    wire: queue.Queue = queue.Queue()
    return Wired(Recorder(SCORES), wire, True), Wired(Recorder(None), wire, False, generation)


def plan(leader: RankGroup, num_tokens: int) -> Plan:
    return Plan(Op.STEP, leader.generation, leader.next_step(), token_ids=np.arange(num_tokens))


def test_followers_execute_what_rank_0_executes() -> None:
    leader, follower = pair()
    thread = threading.Thread(target=follower.follower_loop)
    thread.start()
    sizes = [5, MESSAGE_WORDS - 100, MESSAGE_WORDS, 5 * MESSAGE_WORDS, 0]
    for size in sizes:
        assert leader.verify(plan(leader, size)) is SCORES
        leader.announce(Op.HEARTBEAT)
    leader.announce(Op.STOP)
    thread.join(10)
    assert not thread.is_alive()
    assert [p.token_ids.tolist() for p in follower.worker.plans] == [list(range(size)) for size in sizes]
    assert [p.step for p in follower.worker.plans] == [0, 2, 4, 6, 8]
    assert leader.sizes == follower.sizes  # collectives must match one to one
    assert len(leader.sizes) == 2 * len(sizes) + 1 + 2  # two plans were longer than a message


def test_follower_loop_ends_at_ready_then_at_stop() -> None:
    leader, follower = pair()
    leader.verify(plan(leader, 3))
    leader.announce(Op.READY)
    leader.verify(plan(leader, 4))
    leader.announce(Op.STOP)
    follower.follower_loop(until=Op.READY)
    assert len(follower.worker.plans) == 1
    follower.follower_loop()
    assert len(follower.worker.plans) == 2


def test_plan_one_word_longer_than_a_message_takes_two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    header = Plan(Op.STEP, 0, 0).pack().size
    monkeypatch.setattr(ranks, "MESSAGE_WORDS", header + 7)
    leader, follower = pair()
    for size in (6, 7, 8):
        leader.verify(plan(leader, size))
    leader.announce(Op.STOP)
    follower.follower_loop()
    assert [p.token_ids.size for p in follower.worker.plans] == [6, 7, 8]
    assert follower.sizes == [header + 7] * 3 + [1, header + 7]


def test_rank_out_of_step_is_a_group_error() -> None:
    leader, follower = pair()
    leader.next_step()
    leader.verify(plan(leader, 3))
    with pytest.raises(GroupError, match="rank 0 is at step 1 of generation 2, this rank expects step 0"):
        follower.follower_loop()
    leader, follower = pair(generation=3)
    leader.announce(Op.HEARTBEAT)
    with pytest.raises(GroupError, match="expects step 0 of generation 3"):
        follower.follower_loop()


def test_single_rank_executes_without_a_broadcast() -> None:
    alone = RankGroup(Recorder(SCORES), None, 0)
    assert alone.verify(plan(alone, 2)) is SCORES
    alone.announce(Op.STOP)
    assert len(alone.worker.plans) == 1 and alone.next_step() == 2


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, TimeoutError])
def test_failed_broadcast_is_a_group_error(kind: type[Exception]) -> None:
    class Broken:
        def broadcast(self, _words: Ints) -> None:
            raise kind("Connection closed by peer")

    leader = RankGroup(Recorder(SCORES), Broken(), 0)
    with pytest.raises(GroupError, match=r"broadcast of step 1 failed: Connection closed by peer"):
        leader.announce(Op.HEARTBEAT)
