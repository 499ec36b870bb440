"""A stopped command has the exit code that shells and service managers expect, also inside asyncio."""

import asyncio
import os
import signal
from contextlib import contextmanager

import pytest

from medusa_dist.cli.signals import stoppable


@contextmanager
def as_in_a_terminal():
    """A job in the background ignores SIGINT, one under nohup SIGHUP."""
    inherited = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL))
    }
    try:
        yield
    finally:
        for number, handler in inherited.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
@pytest.mark.parametrize("is_async", [False, True])
def test_each_signal_raises_keyboard_interrupt_and_exits_with_its_code(number, code, is_async):
    cleaned = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            cleaned.append("task")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as error, as_in_a_terminal(), stoppable():
        try:
            if is_async:
                asyncio.run(work())
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            cleaned.append("command")
            raise
    assert error.value.code == code and cleaned == (["task", "command"] if is_async else ["command"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_disturb_the_cleaning_up():
    cleaned = []
    with pytest.raises(SystemExit) as error, stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
    assert error.value.code == 143 and cleaned


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as error, stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        assert error.value.code == 143
    finally:
        signal.signal(signal.SIGHUP, before)
