"""The outbox merges per request, keeps order, never blocks its writer, and names stalled requests."""

import threading
import time
from dataclasses import replace

from medusa_dist.engine.messages import Refusal
from medusa_dist.engine.outbox import Outbox
from medusa_dist.errors import RequestError
from medusa_dist.outputs import FinishReason, Output, TokenLogprobs


def out(request_id: str, *ids: int, finish: FinishReason | None = None) -> Output:
    return Output(request_id=request_id, token_ids=ids, heads=(0,) * len(ids), finish_reason=finish)


def test_outputs_of_one_request_are_merged_in_order():
    box = Outbox(max_tokens=100, stall_s=1.0)
    box.put([out("a", 1, 2), out("b", 7)])
    box.put([out("a", 3, finish=FinishReason.STOP), out("c", 9)])
    taken = box.take(0.0)
    assert [m.request_id for m in taken] == ["a", "b", "c"]
    assert taken[0] == out("a", 1, 2, 3, finish=FinishReason.STOP)
    assert box.take(0.0) == []


def test_prompt_logprobs_survive_merging():
    """They come with the first output alone."""
    scores = (None, TokenLogprobs(5, -0.5, (), ()))
    box = Outbox(max_tokens=100, stall_s=1.0)
    box.put([replace(out("a", 1), prompt_logprobs=scores)])
    box.put([out("a", 2)])
    box.put([out("a", 3, finish=FinishReason.STOP)])
    (taken,) = box.take(0.0)
    assert taken.token_ids == (1, 2, 3) and taken.prompt_logprobs == scores


def test_prefill_time_survives_merging():
    """It comes with the first output, and again after a failure of the group."""
    first, second, third = (replace(out("a", 1), prefill_s=seconds) for seconds in (None, 0.5, 0.25))
    assert first.merged(second).prefill_s == 0.5 and second.merged(first).prefill_s == 0.5
    assert second.merged(third).prefill_s == 0.5


def test_refusal_is_passed_on_unmerged():
    box = Outbox(max_tokens=100, stall_s=1.0)
    refusal = Refusal("a", RequestError("no", "prompt"))
    box.put([refusal, out("b", 1)])
    assert box.take(0.0) == [refusal, out("b", 1)]


def test_take_waits_for_a_put_and_close_wakes_it():
    box = Outbox(max_tokens=100, stall_s=1.0)
    threading.Timer(0.05, box.put, [[out("a", 1)]]).start()
    start = time.monotonic()
    assert box.take(5.0) == [out("a", 1)]
    threading.Timer(0.05, box.close).start()
    assert box.take(5.0) == []
    assert time.monotonic() - start < 2.0
    assert box.finished


def test_outputs_put_before_close_can_still_be_taken():
    box = Outbox(max_tokens=100, stall_s=1.0)
    box.put([out("a", 1)])
    box.close()
    assert not box.finished
    assert box.take(0.0) == [out("a", 1)]
    assert box.finished


def test_request_over_max_tokens_for_stall_s_is_named_once():
    now = 0.0
    box = Outbox(max_tokens=3, stall_s=10.0, clock=lambda: now)
    box.put([out("slow", 1, 2, 3), out("fine", 1)])
    now = 20.0
    assert box.stalled() == []  # at the bound, not over it
    box.put([out("slow", 4)])
    assert box.stalled() == []
    now = 29.9
    assert box.stalled() == []
    now = 30.0
    assert box.stalled() == ["slow"]
    assert box.stalled() == []


def test_reading_in_time_resets_the_stall_deadline():
    now = 0.0
    box = Outbox(max_tokens=1, stall_s=10.0, clock=lambda: now)
    box.put([out("a", 1, 2)])
    now = 9.0
    assert len(box.take(0.0)) == 1
    box.put([out("a", 3, 4)])
    now = 18.0
    assert box.stalled() == []


def test_a_finished_request_never_stalls():
    now = 0.0
    box = Outbox(max_tokens=1, stall_s=1.0, clock=lambda: now)
    box.put([out("a", 1, 2, finish=FinishReason.LENGTH)])
    now = 99.0
    assert box.stalled() == []


def test_error_in_mid_output_becomes_a_refusal():
    box = Outbox(max_tokens=100, stall_s=1.0)
    error = RequestError("cannot go on", "grammar")
    box.put([out("a", 1)])
    box.put([Output(request_id="a", finish_reason=FinishReason.ABORT, error=error), out("b", 7)])
    assert box.take(0.0) == [Refusal("a", error), out("b", 7)]
