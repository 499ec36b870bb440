"""What a user sees of the numbers."""

import io

from rich.console import Console

from medusa_dist.top.figures import Figures, Quantiles
from medusa_dist.top.screen import line, screen

SHOWN = Figures(
    model="smol",
    by_state={"running": 3, "waiting": 1, "in all": 4},
    ended={"stop": 0.5},
    tokens=123.4,
    prompt_tokens=10.0,
    tokens_per_step=1.75,
    steps=20.0,
    heads=((2.0, 1.5), (1.0, 0.25)),
    phases_ms={"forward": 30.0, "draft": 10.0},
    kv_used=0.5,
    replicas_up=1,
    replicas=2,
    generations=(0, 3),
    failures=3,
    first_token=Quantiles(0.05, 1.25),
    batches={"in_progress": 2},
)


def drawn(*models: Figures, trouble: str | None = None, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(screen(models, "http://h/metrics", trouble))
    return stream.getvalue()


def test_screen_has_states_speed_heads_as_bars_phases_replicas_and_generations() -> None:
    text = drawn(SHOWN)
    for part in ("smol", "replicas 1/2", "generations 0,3", "failures 3", "123.4", "1.75", "50 ms/1.25 s", "q leaves"):
        assert part in text, part
    assert "batches in_progress" in text and "ended: stop" in text
    first = next(row for row in text.splitlines() if "head 1" in row)
    assert "75 %" in first and first.count("█") >= 18 and "2.00 verified/step" in first
    forward = next(row for row in text.splitlines() if "forward" in row)
    assert "30.00" in forward


def test_bars_are_as_long_as_their_share() -> None:
    for accepted, filled in ((0.0, 0), (0.5, 12), (1.0, 24)):
        text = drawn(Figures(model="m", by_state={}, tokens=1.0, heads=((1.0, accepted),)))
        bar = next(row for row in text.splitlines() if "head 1" in row)
        assert bar.count("█") == filled and bar.count("·") == 24 - filled


def test_what_is_not_known_yet_is_not_shown_as_zero() -> None:
    text = drawn(Figures(model="m", by_state={"running": 0}))
    assert next(row for row in text.splitlines() if " tokens/s" in row and "prompt" not in row).split()[2] == "…"
    assert "nothing was verified" not in text
    assert "nothing was verified" in drawn(Figures(model="m", by_state={}, tokens=0.0))
    assert "tokens/s, … tokens/step" in line(Figures(model="m", by_state={}))


def test_screen_says_why_there_is_nothing_new() -> None:
    assert "connection refused" in drawn(SHOWN, trouble="connection refused")
    assert "no metrics of medusa_dist here yet" in drawn()


def test_line_has_the_same_numbers() -> None:
    assert line(SHOWN) == (
        "smol: running 3 waiting 1 in all 4; 123.4 tokens/s, 1.75 tokens/step; heads 75% 25%; ms forward 30.0 draft "
        "10.0; kv 50%; replicas 1/2, generations 0,3, 3 failures"
    )
