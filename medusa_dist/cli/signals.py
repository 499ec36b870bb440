"""Signals that end a command in order: SIGTERM and SIGHUP do what Ctrl-C does.

Owns their handlers and the exit code. Not here: what a command does when it is stopped.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """The signal that ended the command, if any. A second SIGTERM or SIGHUP changes nothing; a second Ctrl-C does."""

    def __init__(self) -> None:
        self.number = 0

    def arm(self) -> None:
        """Take over SIGTERM and SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            return
        self.number = number
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as in a background job of a shell script
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)  # asyncio's, while it runs


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; leaving it then exits with 128 + signal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    stop = Stop()
    stop.arm()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + (stop.number or signal.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
