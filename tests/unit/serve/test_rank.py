"""What a rank exports and logs by itself."""

import io
import json
import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from medusa_dist.config import parse_config
from medusa_dist.serve import rank


class Over(Exception):
    """Ends the endless loop."""


def test_time_in_collectives_is_exported_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[float, dict[str, str]]] = []
    made: list[tuple[str, Any]] = []

    class Counter:
        def __init__(self, name: str, *, description: str, tag_keys: tuple[str, ...]) -> None:
            made.append((name, tag_keys))

        def inc(self, amount: float, tags: dict[str, str]) -> None:
            counted.append((amount, tags))

    process = SimpleNamespace(collective_seconds=5.0)  # of the start, which does not count
    later = iter([5.5, 5.5, 7.5])

    def sleep(_: float) -> None:
        process.collective_seconds = next(later, None)
        if process.collective_seconds is None:
            raise Over

    monkeypatch.setattr(rank, "Counter", Counter)
    monkeypatch.setattr(rank, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Over):
        rank._report(SimpleNamespace(name="m"), 3, process)
    assert counted == [(0.5, {"model": "m", "rank": "3"}), (2.0, {"model": "m", "rank": "3"})]
    assert made == [("medusa_dist_rank_collective_seconds_total", ("model", "rank"))]


@pytest.fixture
def package() -> Iterator[logging.Logger]:
    """The package's logger, as it was afterwards."""
    found = logging.getLogger("medusa_dist")
    before = list(found.handlers), found.propagate, found.level
    yield found
    found.handlers, found.propagate = before[:2]
    found.setLevel(before[2])


def made(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank process begins."""
    keys = {"model": "org/name", "device": "cpu", "resources": {"threads_per_rank": 1}, "log_format": log_format}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # and set back afterwards
    rank.Rank(parse_config(keys), 1, 7, "tests.support.fake_stack")


def test_ranks_log_json_with_request_ids_where_the_config_says_so(
    package: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("json", monkeypatch)
    (handler,) = package.handlers
    handler.setStream(stream := io.StringIO())
    logging.getLogger("medusa_dist.engine.loop").info("a request %s", "arrives", extra={"request": "cmpl-1"})
    logging.getLogger("medusa_dist.engine.loop").debug("not this one")
    (line,) = stream.getvalue().splitlines()
    read = json.loads(line)
    assert read["message"] == "a request arrives" and read["levelname"] == "INFO" and read["request"] == "cmpl-1"
    assert (read["model"], read["rank"], read["generation"]) == ("name", 1, 7)


def test_ranks_log_as_before_without_it(package: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(package.handlers), package.propagate, package.level
    made("text", monkeypatch)
    assert (package.handlers, package.propagate, package.level) == before
