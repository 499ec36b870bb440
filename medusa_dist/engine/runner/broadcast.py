"""RankGroup: broadcasts rank 0's plans to all ranks; runs the follower loop.

Owns the broadcast, the only control traffic: one fixed-size int64 message per step, and a second one for the rest of a
longer plan. Not here: what a plan contains (plan.py), how it is executed (worker.py), what carries the messages
(engine/startup/control.py).
"""

from typing import Protocol

import numpy as np

from medusa_dist.engine.runner.phase_timer import PhaseTimer
from medusa_dist.engine.runner.plan import HEADER_WORDS, Op, Plan, packed_words
from medusa_dist.engine.runner.worker import Scores, Worker
from medusa_dist.errors import GroupError
from medusa_dist.ops.arrays import Ints

MESSAGE_WORDS = 1024  # enough for a step of about 32 sequences; broadcast time is flat up to here
assert MESSAGE_WORDS > 2 * HEADER_WORDS


class Control(Protocol):
    """Carries messages from rank 0 to all others."""

    def broadcast(self, words: Ints) -> None:
        """Rank 0 sends the words; the others receive as many, in place. Raises OSError or RuntimeError if a rank is
        lost or does not answer within the deadline of a step."""


class RankGroup:
    """All ranks of one tensor-parallel group, seen from any of them. control: None with a single rank."""

    def __init__(self, worker: Worker, control: Control | None, generation: int) -> None:
        self.worker = worker
        self.generation = generation
        self._control = control
        self._next_step = 0

    def next_step(self) -> int:
        """Number of the next message; rank 0 only."""
        step, self._next_step = self._next_step, self._next_step + 1
        return step

    def verify(self, plan: Plan, clock: PhaseTimer | None = None) -> Scores:
        """Rank 0: have all ranks execute the plan and return their scores. clock: None if the phases are not timed."""
        clock = clock or PhaseTimer()
        self._send(plan)
        clock.lap("broadcast")
        scores = self.worker.execute(plan, clock)
        assert scores is not None, "only rank 0 verifies"
        return scores

    def announce(self, op: Op) -> None:
        """Rank 0: send a message without work: HEARTBEAT, READY or STOP."""
        self._send(Plan(op, self.generation, self.next_step()))

    def follower_loop(self, until: Op = Op.STOP) -> None:
        """Ranks > 0: execute plans until the op `until` arrives. Raises GroupError if rank 0 is gone or out of sync."""
        while True:
            plan = self._receive()
            if plan.op is until:
                return
            if plan.op is Op.STEP:
                self.worker.execute(plan)

    def _send(self, plan: Plan) -> None:
        if self._control is None:
            return
        words = plan.pack()
        first = np.zeros(MESSAGE_WORDS, dtype=np.int64)
        first[: min(words.size, MESSAGE_WORDS)] = words[:MESSAGE_WORDS]
        self._broadcast(first)
        if words.size > MESSAGE_WORDS:
            self._broadcast(words[MESSAGE_WORDS:])

    def _receive(self) -> Plan:
        words: Ints = np.zeros(MESSAGE_WORDS, dtype=np.int64)
        self._broadcast(words)
        size = packed_words(words)
        if size > MESSAGE_WORDS:
            rest: Ints = np.zeros(size - MESSAGE_WORDS, dtype=np.int64)
            self._broadcast(rest)
            words = np.concatenate([words, rest])
        plan = Plan.unpack(words[:size], self.generation, self._next_step)
        self._next_step += 1
        return plan

    def _broadcast(self, words: Ints) -> None:
        assert self._control is not None
        try:
            self._control.broadcast(words)
        except (OSError, RuntimeError) as error:
            raise GroupError(f"the broadcast of step {self._next_step} failed: {error}") from error
