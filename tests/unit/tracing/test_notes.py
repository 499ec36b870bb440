from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tracing.notes import NUM_DENSE, RequestNotes


def notes() -> RequestNotes:
    return RequestNotes(Request(request_id="a-0", prompt_ids=(1, 2), params=SamplingParams(), seed=1), "m", "chat")


def output(**fields) -> Output:
    return Output(request_id="a-0", token_ids=(7, 8), stats=SpeculationStats(1, 3, (1,)), **fields)


def test_noted_outputs_are_bounded_while_sums_are_of_all() -> None:
    one = notes()
    for _ in range(100_000):
        one.arrived(output())
    numbers = [noted.number for noted in one.outputs]
    assert numbers[:NUM_DENSE] == list(range(1, NUM_DENSE + 1))
    assert numbers[NUM_DENSE:] == [2**k for k in range(6, 17)]
    assert (one.num_tokens, one.stats.num_steps, one.stats.num_accepted) == (200_000, 100_000, 100_000)


def test_phases_follow_each_other_without_a_gap() -> None:
    one = notes()
    one.begin_ns -= 10**9  # it waited a second, and computed the prompt for 0.25 of it
    one.arrived(output(prefill_s=0.25))
    one.arrived(output(finish_reason=FinishReason.STOP))
    one.delivered()
    queue, prefill, decode, stream = one.phases(one.delivered_ns)
    assert (queue.name, queue.begin_ns, queue.end_ns) == ("queue", one.begin_ns, one.first_ns - 250_000_000)
    assert (prefill.name, prefill.begin_ns, prefill.end_ns) == ("prefill", queue.end_ns, one.first_ns)
    assert (decode.name, decode.begin_ns, decode.end_ns, len(decode.outputs)) == (
        "decode",
        one.first_ns,
        one.last_ns,
        2,
    )
    assert (stream.name, stream.begin_ns, stream.end_ns) == ("stream", one.first_ns, one.delivered_ns)


def test_request_that_got_no_token_has_only_waited() -> None:
    one = notes()
    assert [(phase.name, phase.begin_ns, phase.end_ns) for phase in one.phases(one.begin_ns + 5)] == [
        ("queue", one.begin_ns, one.begin_ns + 5)
    ]


def test_search_has_its_whole_time_in_decode_since_its_first_step_is_not_known() -> None:
    one = notes()
    one.arrived(output(finish_reason=FinishReason.LENGTH))
    assert [(phase.name, phase.begin_ns) for phase in one.phases(0)] == [
        ("decode", one.begin_ns),
        ("stream", one.first_ns),
    ]


def test_second_prefill_is_a_request_that_went_on_after_a_failure() -> None:
    one = notes()
    one.arrived(output(prefill_s=0.1))
    one.arrived(output())
    assert not one.resumed_ns
    one.arrived(output(prefill_s=0.2))
    (_, _, decode, _) = one.phases(0)
    assert decode.resumed_ns == (one.last_ns,) and one.prefill_s == 0.1
