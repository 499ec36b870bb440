"""The loop of `top`: keys, lines, and a service that goes and comes back."""

import io
import os
import pty
import sys
import termios
import threading
import time

import pytest
from rich.console import Console

from medusa_dist.errors import EngineError
from medusa_dist.top.reading import Reading, parse
from medusa_dist.top.run import keys, print_lines, watch
from tests.support.exposition import exposition


class Service:
    """Answers readings, one second apart; an exception is raised instead."""

    url = "http://h/metrics"

    def __init__(self, *trouble: int) -> None:
        self.trouble = trouble
        self.num_reads = 0

    def read(self) -> Reading:
        self.num_reads += 1
        if self.num_reads in self.trouble:
            raise EngineError("it is gone")
        return parse(exposition({"requests": 1, "tokens_total": 10 * self.num_reads}), float(self.num_reads))


def test_lines_begin_with_the_second_reading_and_end_by_count() -> None:
    stream, service, waits = io.StringIO(), Service(), []
    print_lines(service, Console(file=stream, width=40), 2.5, lambda s: bool(waits.append(s)), count=2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and all("10.0 tokens/s" in line for line in lines), "not wrapped"
    assert waits == [2.5, 2.5] and service.num_reads == 3


def test_line_mode_ends_with_the_error_of_a_service_that_is_gone() -> None:
    with pytest.raises(EngineError, match="it is gone"):
        print_lines(Service(1), Console(file=io.StringIO()), 1.0, lambda _: False, count=None)


def test_screen_stays_while_the_service_is_gone_and_leaves_by_key() -> None:
    stream, service, presses = io.StringIO(), Service(2), iter([False, False, True])
    watch(service, Console(file=stream, force_terminal=True, width=120, height=40), 1.0, lambda _: next(presses))
    text = stream.getvalue()
    assert "it is gone" in text and service.num_reads == 3
    assert text.index("it is gone") < text.rindex("tokens/s"), "it came back"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is typed: the other end of a terminal that is standard input."""
    typed, inside = pty.openpty()
    with os.fdopen(inside) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield typed
    os.close(typed)


def test_q_leaves_at_once_other_keys_do_not_and_the_terminal_is_as_before(terminal: int) -> None:
    before = termios.tcgetattr(sys.stdin.fileno())
    with keys() as wait:
        assert wait(0.01) is False
        os.write(terminal, b"x")
        assert wait(5.0) is False
        threading.Timer(0.2, os.write, (terminal, b"q")).start()
        begin = time.monotonic()
        assert wait(60.0) is True and time.monotonic() - begin < 30.0
    assert termios.tcgetattr(sys.stdin.fileno()) == before
