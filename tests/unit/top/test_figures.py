"""Numbers of `top`, by hand."""

from typing import Any

import pytest

from medusa_dist.top.figures import WINDOW_S, Figures, Quantiles, ReadingHistory
from medusa_dist.top.reading import parse
from tests.support.exposition import exposition


def samples(step: int, **more: Any) -> dict[str, Any]:
    """After `step` seconds of 10 steps/s, two sequences each, 3 drafts verified and 1 accepted at depth 1."""
    return {
        "requests": 3,
        "running_sequences": 2,
        "waiting_sequences": 1,
        "group_up": 1,
        "generation": 4,
        "group_failures_total": 4,
        "kv_used_fraction": 0.25,
        "steps_total": 10 * step,
        "sequence_steps_total": 20 * step,
        "tokens_total": 40 * step,
        "prompt_tokens_total": 5 * step,
        "drafted_tokens_total": [({"head": "1"}, 60 * step), ({"head": "2"}, 20 * step), ({"head": "3"}, 0)],
        "accepted_tokens_total": [({"head": "1"}, 20 * step), ({"head": "2"}, 0)],
        "phase_seconds_total": [({"phase": "forward"}, 0.5 * step), ({"phase": "draft"}, 0.1 * step)],
        "requests_ended_total": [({"reason": "stop"}, step), ({"reason": "error"}, 0)],
        "time_to_first_token_seconds_bucket": [
            ({"le": le}, n * step) for le, n in (("0.1", 5), ("1", 9), ("+Inf", 10))
        ],
        **more,
    }


def figures(*readings: tuple[float, dict[str, Any]]) -> Figures:
    history = ReadingHistory()
    for at, given in readings:
        history.add(parse(exposition(given), at))
    (one,) = history.figures()
    return one


def test_rates_are_taken_between_two_readings() -> None:
    shown = figures((100.0, samples(1)), (104.0, samples(5)))
    assert shown.by_state == {"running": 2, "waiting": 1, "in all": 3}
    assert (shown.tokens, shown.steps, shown.prompt_tokens) == (40.0, 10.0, 5.0)
    assert shown.tokens_per_step == 2.0
    assert shown.heads == ((3.0, 1.0), (1.0, 0.0)), "of heads that verified something"
    assert shown.phases_ms == pytest.approx({"forward": 50.0, "draft": 10.0})
    assert shown.ended == {"stop": 1.0}
    assert (shown.replicas_up, shown.replicas, shown.generations, shown.failures) == (1, 1, (4,), 4)
    assert shown.kv_used == 0.25


def test_percentiles_are_interpolated_in_their_bucket_as_prometheus_does() -> None:
    shown = figures((100.0, samples(1)), (104.0, samples(5)))
    assert shown.first_token.p50 == pytest.approx(0.1)
    assert shown.first_token.p95 == 1.0, "beyond the last limit: the limit"
    even = [({"le": "0.1"}, 0), ({"le": "1"}, 40), ({"le": "+Inf"}, 40)]
    assert figures(
        (0.0, samples(1, time_per_token_seconds_bucket=[(labels, 0) for labels, _ in even])),
        (4.0, samples(5, time_per_token_seconds_bucket=even)),
    ).token == Quantiles(pytest.approx(0.55), pytest.approx(0.955))


def test_metrics_that_are_exported_rarely_still_give_the_true_rate() -> None:
    """A port with new numbers every ten seconds, read every second."""
    readings = [(100.0 + second, samples(10 * (second // 10))) for second in range(35)]
    assert figures(*readings).tokens == pytest.approx(40.0)


def test_one_reading_gives_no_rates_and_a_quiet_service_gives_zero() -> None:
    first = figures((100.0, samples(1)))
    assert first.tokens is None and first.heads == () and first.by_state["running"] == 2
    assert figures(*[(100.0 + second, samples(1)) for second in range(3)]).tokens is None
    assert figures(*[(100.0 + second, samples(1)) for second in range(int(WINDOW_S) + 2)]).tokens == 0.0
    later = [(100.0 + second, samples(1 + min(second, 3))) for second in range(int(WINDOW_S) + 5)]
    assert figures(*later).tokens == 0.0 and figures(*later[:20]).tokens == pytest.approx(40.0)


def test_a_counter_that_began_anew_is_not_negative() -> None:
    shown = figures((100.0, samples(50)), (102.0, samples(2)))
    assert shown.tokens == 40.0


def test_models_and_replicas_are_kept_apart() -> None:
    given = samples(1, group_up=[({"replica": "a"}, 1), ({"replica": "b"}, 0)], batches=[({"status": "x"}, 2)])
    text = exposition(given) + exposition({"requests": 9, "running_sequences": 9}, model="other")
    history = ReadingHistory()
    history.add(parse(text, 1.0))
    mine, other = history.figures()
    assert (mine.model, other.model) == ("m", "other")
    assert (mine.replicas_up, mine.replicas, mine.batches) == (1, 2, {"x": 2})
    assert mine.by_state["running"] == 2 and other.by_state["running"] == 9 and other.replicas == 0
