"""The tracing of this process, if the config has it on.

Owns the import of the optional packages, which happens only then. Not here: spans (spans.py).
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from medusa_dist.errors import ConfigError
from medusa_dist.tracing.notes import RequestNotes


class OpenCall(Protocol):
    """spans.CallTrace: one HTTP call, as the routes see it."""

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see it."""

    def request(self, notes: RequestNotes) -> None:
        """A request of it is over."""

    def end(self, status: int | None, request_id: str | None, error: str | None = None) -> None:
        """It is over."""


class Tracer(Protocol):
    """spans.Tracing: makes the spans of this process."""

    def call(self, route: str, path: str, headers: Mapping[str, str]) -> OpenCall:
        """Begin the span of a POST."""

    def close(self) -> None:
        """Send what waits, and stop."""


def check_tracing(is_on: bool) -> None:
    """Raise ConfigError if it is on and cannot be."""
    if is_on:
        _of_spans("check_spans")()


def open_tracing(is_on: bool) -> Tracer | None:
    """The one of this process; None if it is off, and then nothing is imported. Raises ConfigError."""
    return _opened() if is_on else None


@cache
def _opened() -> Tracer:
    made: Tracer = _of_spans("open_spans")()
    return made


def _of_spans(name: str) -> Callable[[], Any]:
    try:
        module = import_module("medusa_dist.tracing.spans")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "opentelemetry":
            raise
        raise ConfigError(
            f"tracing: the package of {error.name} is not installed; pip install 'medusa-dist[tracing]'"
        ) from None
    found: Callable[[], Any] = getattr(module, name)
    return found
