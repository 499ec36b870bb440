"""How far a job is, on a console that is no terminal and on one that is."""

import io
import pickle

import pytest
from rich.console import Console

from medusa_dist.tools import progress
from medusa_dist.tools.progress import ProgressDisplay, ProgressText, pace


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_without_a_terminal_progress_is_printed_as_occasional_lines(clock: Clock) -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=30), "loading [bold]") as display:
        for done in range(2, 41):
            display.say(ProgressText("reading", done, 1200, "answers", f"{done} [more]"))
            clock.now += 1.0
        for _ in range(30):
            display.say("replaying")
            clock.now += 1.0
        display.say(ProgressText("reading", 5, 6, "answers"))
    assert out.getvalue().splitlines() == [
        "loading [bold]",
        "reading: 2 of 1,200 answers, 2 [more]",
        "reading: 12 of 1,200 answers, 12 [more], 1 answers/s, 0:19:48 left",
        "reading: 22 of 1,200 answers, 22 [more], 1 answers/s, 0:19:38 left",
        "reading: 32 of 1,200 answers, 32 [more], 1 answers/s, 0:19:28 left",
        "replaying",  # what is new is told at once, and what is not counted only once
        "reading: 5 of 6 answers",  # a new count: what an earlier run did is no pace
    ]


def test_on_a_terminal_progress_is_a_bar_that_is_erased_at_the_end(clock: Clock) -> None:
    """Gone when it is left; outside nothing is shown; it may be entered again."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, _environ={"TERM": "xterm"})
    display = ProgressDisplay(console)
    display.say("nothing")
    assert out.getvalue() == ""
    for _ in range(2):
        out.truncate(out.seek(0))
        with display:
            display.say("loading [bold]")
            for done in (0, 4):
                display.say(ProgressText("reading", done, 8, "answers"))
                clock.now += 2.0
            display.say(ProgressText("reading", 8, 8, "answers"))
            (task,) = display._bars.tasks
            assert (task.completed, task.total) == (8, 8) and task.finished
            display.say("packing")
            (task,) = display._bars.tasks
            assert (task.description, task.total) == ("packing", None)
        shown = out.getvalue()
        assert "packing" in shown and "\n" in shown and shown.endswith("\x1b[2K")  # the line is erased


def test_a_terminal_that_cannot_draw_gets_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    with ProgressDisplay(console, "loading"):
        assert out.getvalue() == "loading\n"


def test_progress_text_survives_pickling_with_its_counts() -> None:
    count = ProgressText("reading", 1234, 5678, "tokens", "on 2 ranks")
    assert count == "reading: 1,234 of 5,678 tokens, on 2 ranks"
    again = pickle.loads(pickle.dumps(count))
    assert type(again) is ProgressText and again == count and vars(again) == vars(count)
    assert (again.done, again.total) == (1234, 5678)


@pytest.mark.parametrize(
    ("done", "left", "seconds", "text"),
    [
        (0, 5, 3.0, ""),
        (5, 5, 0.0, ""),
        (-1, 5, 3.0, ""),
        (1, 9, 80.0, ", 0.013 pairs/s, 0:12:00 left"),
        (9, 0, 2.0, ", 4.5 pairs/s, 0:00:00 left"),
        (12000, 6000, 6.0, ", 2,000 pairs/s, 0:00:03 left"),
    ],
)
def test_pace_gives_rate_and_time_left(done: int, left: int, seconds: float, text: str) -> None:
    assert pace(done, left, seconds, "pairs") == text
