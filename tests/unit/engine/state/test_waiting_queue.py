"""The waiting queue: priority first, then first come, first served."""

import random

from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.engine.state.waiting_queue import WaitingQueue
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams


def group(number: int, priority: int = 0) -> SingleSequence:
    request = Request(request_id=f"r{number}", prompt_ids=(1,), params=SamplingParams(), seed=0, priority=priority)
    return SingleSequence(request, (), number)


def test_queue_is_sorted_by_priority_then_arrival_in_any_order_of_adding() -> None:
    rng = random.Random(0)
    for _ in range(50):
        each = [group(number, rng.randrange(-2, 3)) for number in range(12)]
        expected = sorted(each, key=lambda s: (s.request.priority, s.number))
        rng.shuffle(each)
        queue = WaitingQueue()
        for one in each:
            queue.add(one)
            queue.check_integrity()
        assert len(queue) == 12 and list(queue) == expected and queue.first is expected[0]
        gone = rng.choice(each)
        queue.remove(gone)
        assert list(queue) == [s for s in expected if s is not gone]


def test_empty_queue_is_false() -> None:
    queue = WaitingQueue()
    assert not queue and len(queue) == 0 and list(queue) == []
