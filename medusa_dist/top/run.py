"""The loop of `top`: reads, shows, and leaves at `q`.

Owns keys and timing. Not here: readings (reading.py), figures (figures.py), the screen (screen.py).
"""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from medusa_dist.errors import EngineError
from medusa_dist.top.figures import ReadingHistory
from medusa_dist.top.reading import Source
from medusa_dist.top.screen import line, screen

LEAVE = (b"q", b"Q", b"\x03", b"\x04", b"")  # also Ctrl-C, Ctrl-D and the end of the input
Wait = Callable[[float], bool]


def watch(source: Source, console: Console, interval_s: float, wait: Wait) -> None:
    """Show the service on a whole screen until `wait` returns True: a key to leave was pressed while it waited.

    A service that is gone is said on the screen, and shown again once it is back.
    """
    history = ReadingHistory()
    trouble: str | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                history.add(source.read())
                trouble = None
            except EngineError as error:
                trouble = error.message
            live.update(screen(history.figures(), source.url, trouble), refresh=True)
            if wait(interval_s):
                return


def print_lines(source: Source, console: Console, interval_s: float, wait: Wait, count: int | None) -> None:
    """Print a line per model every interval: count times, or until `wait` returns True. Raises EngineError.

    The first lines come after the second reading, when rates are known.
    """
    history = ReadingHistory()
    history.add(source.read())
    printed = 0
    while not wait(interval_s):
        history.add(source.read())
        for shown in history.figures():
            console.print(line(shown), markup=False, highlight=False, soft_wrap=True)
        printed += 1
        if printed == count:
            return


def pause(seconds: float) -> bool:
    """Wait where there are no keys."""
    time.sleep(seconds)
    return False


@contextmanager
def keys() -> Iterator[Wait]:
    """Single keys of the terminal on standard input, without Enter and without echo."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        yield lambda seconds: bool(select.select([file], [], [], seconds)[0]) and os.read(file, 1) in LEAVE
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
