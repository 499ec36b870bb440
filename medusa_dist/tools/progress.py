"""Progress of a long job: a bar on a terminal, occasional lines elsewhere (log files, CI).

Owns the format of both. Not here: the messages. Jobs report plain texts, which also cross processes (serve/rank.py);
a ProgressText also carries its numbers, for the bar, the rate and the time left.
"""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

REPORT_S = 10.0  # between two lines of the same count without a terminal


class ProgressText(str):
    """A text with numbers, such as "processing: 3 of 8 lines, 1 failed"."""

    what: str
    done: int
    total: int
    unit: str
    _more: str

    def __new__(cls, what: str, done: int, total: int, unit: str, more: str = "") -> "ProgressText":
        """unit: plural. more: further text for now."""
        text = super().__new__(cls, f"{what}: {done:,} of {total:,} {unit}" + (f", {more}" if more else ""))
        text.what, text.done, text.total, text.unit, text._more = what, done, total, unit, more
        return text

    def __reduce__(self) -> tuple[type["ProgressText"], tuple[str, int, int, str, str]]:
        return ProgressText, (
            self.what,
            self.done,
            self.total,
            self.unit,
            self._more,
        )  # str's own would pickle only the text


class ProgressDisplay:
    """Shows progress messages. On a terminal only while entered; it may be entered repeatedly."""

    def __init__(self, console: Console, first: str = "") -> None:
        """first: message shown on entering."""
        self._console, self._first = console, first
        self._has_bar = console.is_terminal and not console.is_dumb_terminal
        columns = (
            BarColumn(bar_width=20, table_column=Column(min_width=20)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.description}", markup=False, table_column=Column()),  # wraps
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not self._has_bar)
        self._bar: TaskID | None = None
        self._what = ""  # current activity
        self._began = self._reported = 0.0  # seconds: when it began, and when a line was last printed
        self._begun_with = 0  # units done at that time

    def __enter__(self) -> "ProgressDisplay":
        self._bars.start()
        if self._first:
            self.say(self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Show the current activity. A ProgressText continues the previous one while `what` is the same."""
        now = time.monotonic()
        what = text.what if isinstance(text, ProgressText) else text
        is_new = what != self._what
        if is_new:
            self._what, self._began = what, now
            self._begun_with = text.done if isinstance(text, ProgressText) else 0
        if isinstance(text, ProgressText):
            line = text + pace(text.done - self._begun_with, text.total - text.done, now - self._began, text.unit)
        else:
            line = text
        if self._has_bar:
            self._draw(text, line, is_new)
        elif is_new or (isinstance(text, ProgressText) and now - self._reported >= REPORT_S):
            self._reported = now
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, text: str, line: str, is_new: bool) -> None:
        if self._bar is None or is_new:  # a new bar, because a total cannot be removed from an existing one
            if self._bar is not None:
                self._bars.remove_task(self._bar)
            self._bar = self._bars.add_task(line, total=None)
        if isinstance(text, ProgressText):
            self._bars.update(self._bar, description=line, completed=text.done, total=text.total)


def pace(num_done: int, num_left: int, seconds: float, unit: str) -> str:
    """Rate of num_done units in this time, and the time left for the rest; "" until something is done."""
    if num_done <= 0 or seconds <= 0.0:
        return ""
    rate = num_done / seconds
    fast = f"{rate:,.0f}" if rate >= 10.0 else f"{rate:.2g}"
    return f", {fast} {unit}/s, {timedelta(seconds=round(num_left / rate))} left"
