"""Runs a chat template's code within limits of time and memory.

Owns the limits, how a run is stopped, and which exceptions are a template's own. Not here: rendering
(chat_template.py). A template is a program that comes with the model and works on what clients send: some conversation
may make it loop without end, or grow a text without end. It runs in a thread of its own, which is stopped between two
of its operations; a single operation of the interpreter (such as one multiplication of a text) cannot be stopped.
"""

import ctypes
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from jinja2 import TemplateError

from medusa_dist.errors import RequestError

T = TypeVar("T")

# What a template can raise by what it does with messages. Jinja's own for its rules, Python's for everything else.
TEMPLATE_FAILURES = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, MemoryError, AssertionError),
)
CPU_S = 2.0  # a conversation as long as any context renders in a small part of it
WALL_S = 10.0  # if the thread hardly gets to run
MEMORY_BYTES = 1 << 30  # growth of the process while the template runs
_POLL_S = 0.02
_STATM = Path("/proc/self/statm")


class _Stopped(BaseException):
    """Raised inside a thread that has used up its limits. No template code can catch it."""


def describe_failure(error: BaseException) -> str:
    """What a template says or did, for the client: Jinja's message as it is, others with their kind."""
    text = str(error)
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def run_bounded(
    work: Callable[[], T], cpu_s: float = CPU_S, wall_s: float = WALL_S, memory_bytes: int = MEMORY_BYTES
) -> T:
    """The result of `work`, which runs a chat template; its exceptions are raised here.

    Blocks, so call it in a thread where others must go on. Raises RequestError if it takes longer than cpu_s of
    computing or wall_s in all, or if the process grows by more than memory_bytes meanwhile.
    """
    run = _Run(work)
    before, deadline = _resident_bytes(), time.monotonic() + wall_s
    run.start()
    while not run.ended.wait(_POLL_S):
        if run.cpu_s() > cpu_s or time.monotonic() > deadline:
            raise _refusal(run, f"did not end within {cpu_s:g} s of computing")
        if _resident_bytes() - before > memory_bytes:
            raise _refusal(run, f"needs more than {memory_bytes >> 20} MiB of memory")
    if run.error is not None:
        raise run.error
    return run.result[0]


class _Run(threading.Thread, Generic[T]):
    """A thread for one piece of work, with its result or error."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(name="chat-template", daemon=True)
        self.ended = threading.Event()
        self.result: list[T] = []
        self.error: BaseException | None = None
        self._work = work
        self._lock = threading.Lock()  # whoever holds it decides whether the thread has ended or is stopped

    def run(self) -> None:
        """Work, and note how it ended."""
        try:
            result = self._work()
            with self._lock:
                self.result.append(result)
                self.ended.set()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
            self.ended.set()

    def cpu_s(self) -> float:
        """Seconds of computing so far; 0 where the system has no clock for a thread."""
        clock = getattr(time, "pthread_getcpuclockid", None)
        if clock is None or self.ident is None or self.ended.is_set():
            return 0.0
        try:
            return time.clock_gettime(clock(self.ident))
        except OSError:
            return 0.0  # it has just ended

    def stop(self) -> None:
        """Raise _Stopped in the thread, at its next operation."""
        with self._lock:
            if not self.ended.is_set() and self.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(_Stopped))


def _refusal(run: "_Run[T]", why: str) -> RequestError:
    run.stop()
    return RequestError(f"the model's chat template {why} for these messages; it may have an endless loop", "messages")


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
